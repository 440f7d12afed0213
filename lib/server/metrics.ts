// Metrics for Prometheus.
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { Models } from './models';
import type { Served } from './routes';

/** Counts what a server does. */
export class Metrics {
  readonly #registry = new Registry();
  readonly #requests: Counter<'route' | 'model' | 'status'>;
  readonly #tokens: Counter<'model' | 'kind'>;
  readonly #decisions: Counter<'model' | 'type'>;
  readonly #seconds: Histogram<'route'>;

  constructor(models: Models) {
    const registers = [this.#registry];
    collectDefaultMetrics({ register: this.#registry });
    this.#requests = new Counter({
      name: 'dultra_requests_total',
      help: 'Requests, by how they were answered; 499: the client left',
      labelNames: ['route', 'model', 'status'],
      registers,
    });
    this.#tokens = new Counter({
      name: 'dultra_tokens_total',
      help: 'Tokens of answered requests',
      labelNames: ['model', 'kind'],
      registers,
    });
    this.#decisions = new Counter({
      name: 'dultra_decisions_total',
      help: 'Questions that were decided',
      labelNames: ['model', 'type'],
      registers,
    });
    this.#seconds = new Histogram({
      name: 'dultra_request_seconds',
      help: 'Time from a request to the end of its answer',
      labelNames: ['route'],
      buckets: [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300],
      registers,
    });
    const gauge = (name: string, help: string, read: (state: State) => number) =>
      new Gauge({
        name,
        help,
        labelNames: ['model'],
        registers,
        collect() {
          this.reset();
          for (const [model, loaded] of models.loaded) this.set({ model }, read(loaded.engineParts().engine.state));
        },
      });
    new Gauge({
      name: 'dultra_model_loads',
      help: 'Models loaded on request so far',
      registers,
      collect() {
        this.set(models.loads);
      },
    });
    new Gauge({
      name: 'dultra_model_bytes',
      help: 'Bytes of the weights of loaded models',
      labelNames: ['model'],
      registers,
      collect() {
        this.reset();
        for (const [model, loaded] of models.loaded) this.set({ model }, loaded.info.weightBytes);
      },
    });
    type State = ReturnType<Models['loaded'][number][1]['engineParts']>['engine']['state'];
    gauge('dultra_active_rows', 'Rows that go through passes', ({ activeRows }) => activeRows);
    gauge('dultra_queued_rows', 'Rows that wait', ({ queuedRows }) => queuedRows);
    gauge('dultra_kv_bytes', 'Bytes of keys and values that rows have', ({ kvBytes }) => kvBytes.used);
    gauge('dultra_kv_allocated_bytes', 'Bytes allocated for keys and values', ({ kvBytes }) => kvBytes.allocated);
    gauge('dultra_passes', 'Forward passes so far', ({ passes }) => passes);
    gauge('dultra_pass_seconds', 'Time of all passes so far', ({ passSeconds }) => passSeconds);
    gauge('dultra_pass_rows', 'Rows of all passes so far', ({ passRows }) => passRows);
    gauge('dultra_pass_positions', 'Positions of all passes so far', ({ passPositions }) => passPositions);
  }

  /** Counts an answered request. */
  count(route: string, { model, usage, decisions = [] }: Served, status: number, seconds: number): void {
    this.#requests.inc({ route, model, status: String(status) });
    this.#seconds.observe({ route }, seconds);
    for (const type of decisions) this.#decisions.inc({ model, type });
    if (!usage) return;
    this.#tokens.inc({ model, kind: 'prompt' }, usage.prompt_tokens);
    this.#tokens.inc({ model, kind: 'completion' }, usage.completion_tokens);
  }

  /** All metrics, in the text format. */
  async read(): Promise<{ text: string; contentType: string }> {
    return { text: await this.#registry.metrics(), contentType: this.#registry.contentType };
  }
}
