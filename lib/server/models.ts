// The models of a server, by name.
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { ApiError } from './errors';

/** A model of a server: loaded, or how to load it on its first request. */
export type ServedModel = MaskedDiffusionModel | (() => Promise<MaskedDiffusionModel>);

interface Entry {
  source: ServedModel;
  loading: Promise<MaskedDiffusionModel> | null;
  loaded: MaskedDiffusionModel | null;
  /** Seconds since 1970. */
  readonly created: number;
}

/** Loads models when they are asked for, one at a time. */
export class Models {
  readonly #entries: ReadonlyMap<string, Entry>;
  #last: Promise<unknown> = Promise.resolve();

  constructor(models: Readonly<Record<string, ServedModel>>) {
    const created = Math.floor(Date.now() / 1000);
    this.#entries = new Map(
      Object.entries(models).map(([name, source]) => [
        name,
        { source, loading: null, loaded: typeof source === 'function' ? null : source, created },
      ]),
    );
  }

  /** Entries of GET /v1/models. */
  get list() {
    return [...this.#entries].map(([id, { created }]) => ({ id, object: 'model', created, owned_by: 'dultra' }));
  }

  /** Those that are loaded. */
  get loaded(): [name: string, model: MaskedDiffusionModel][] {
    return [...this.#entries].flatMap(([name, { loaded }]) =>
      loaded ? [[name, loaded] as [string, typeof loaded]] : [],
    );
  }

  /** The name that a request means. Default: the first. @throws ApiError model_not_found */
  nameOf(name: string | undefined): string {
    const [first] = this.#entries.keys();
    const meant = name ?? first;
    if (!this.#entries.has(meant))
      throw new ApiError(404, 'model_not_found', `there is no model ${JSON.stringify(meant.slice(0, 200))}`, 'model');
    return meant;
  }

  /** The model of a name, loaded. */
  async get(name: string): Promise<MaskedDiffusionModel> {
    const entry = this.#entries.get(name)!;
    const { source } = entry;
    if (typeof source !== 'function') return source;
    if (!entry.loading) {
      const load = this.#last.then(source);
      // The next one is loaded whatever became of this one.
      this.#last = load.catch(() => {});
      entry.loading = load.then(
        (model) => {
          entry.loaded = model;
          return model;
        },
        (error) => {
          entry.loading = null;
          throw error;
        },
      );
    }
    return entry.loading;
  }
}
