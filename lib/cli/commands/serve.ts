// dultra serve: an OpenAI-compatible server.
import type { Command } from 'commander';
import type { EngineOptions, MaskedDiffusionModel } from '../../index';
import { listen, type ServedModel, Server } from '../../server';
import { UsageError } from '../errors';
import { addLoadingOptions, type ModelFlags, openModel } from '../model';
import { addQuietOption, printMessage } from '../output';
import { integer } from '../values';

interface ServeFlags extends Omit<ModelFlags, 'model' | 'adapter'> {
  model?: string[];
  adapter?: string[];
  preload?: boolean;
  maxModelBytes?: number;
  playground?: boolean;
  host?: string;
  port?: number;
  apiKey?: string[];
  auth?: boolean;
  cors?: string[];
  maxBody?: number;
  drain?: number;
  maxRows?: number;
  maxQueue?: number;
  kvBytes?: number;
  stepTokens?: number;
}

/** Name of a model that is given without one. */
const DEFAULT_NAME = 'dultra';
const LOOPBACK = ['127.0.0.1', '::1', 'localhost'];

/** A model that is served, by its name in requests. */
interface Source {
  name: string;
  model?: string;
  adapter?: string;
}

/** "NAME=REST" in two parts; the name is undefined where there is none. */
function namedPart(text: string): { name: string | undefined; rest: string } {
  const [, name, rest] = /^([\w.:-]+)=(.+)$/.exec(text) ?? [];
  return { name, rest: rest ?? text };
}

/**
 * The models that --model and --adapter name: "NAME=SOURCE", of which the first can do without a name, and
 * "[MODEL:]NAME=FOLDER", which is served as "MODEL:NAME"; an adapter without a name is part of the first model.
 * @throws UsageError
 */
export function sourcesOf(models: readonly string[], adapters: readonly string[]): Source[] {
  const sources = new Map<string, Source>();
  const add = (source: Source, option: string) => {
    if (sources.has(source.name)) throw new UsageError(`${option}: ${source.name} is given twice`);
    sources.set(source.name, source);
  };
  if (models.length === 0) add({ name: DEFAULT_NAME }, '--model');
  for (const [i, text] of models.entries()) {
    const { name, rest } = namedPart(text);
    if (name?.includes(':')) throw new UsageError(`--model: expected a name without ":", got ${name}`);
    if (name === undefined && i > 0)
      throw new UsageError(`--model: expected NAME=SOURCE for a second model, got ${text}`);
    add({ name: name ?? DEFAULT_NAME, model: rest }, '--model');
  }
  const [first] = sources.values();
  for (const text of adapters) {
    const { name, rest } = namedPart(text);
    if (name === undefined) {
      if (first.adapter !== undefined)
        throw new UsageError(`--adapter: expected NAME=FOLDER for a second one, got ${text}`);
      first.adapter = rest;
      continue;
    }
    const [adapter, base = first.name, ...more] = name.split(':').reverse();
    const under = sources.get(base);
    if (more.length > 0 || !under || adapter === '')
      throw new UsageError(`--adapter: expected [MODEL:]NAME=FOLDER with a model of --model, got ${text}`);
    add(
      { name: `${base}:${adapter}`, ...(under.model !== undefined && { model: under.model }), adapter: rest },
      '--adapter',
    );
  }
  return [...sources.values()];
}

/** Resolves at the first SIGINT or SIGTERM; a second one ends the process at once. */
function stopSignal(): Promise<void> {
  return new Promise((resolve) => {
    let isStopping = false;
    for (const name of ['SIGINT', 'SIGTERM'] as const) {
      process.removeAllListeners(name);
      process.on(name, () => {
        if (isStopping) process.exit(130);
        isStopping = true;
        resolve();
      });
    }
  });
}

/** Adds `dultra serve` to the program. */
export function register(program: Command): void {
  const command = program
    .command('serve')
    .summary('an OpenAI-compatible server')
    .description(
      'Answers /v1/chat/completions, /v1/completions, /v1/responses and /v1/models as OpenAI does, /health, /metrics for Prometheus, and a page to try the models on. ' +
        'Requests at the same time share forward passes; none changes the answer of another. docs/serving.md has the rest.',
    );
  command
    .optionsGroup('Model:')
    .option(
      '-m, --model <name=source...>',
      'models by the names that requests have: checkpoint or run folder, or hub id; the first is the default one, and without a name is dultra (default: the embedded model)',
    )
    .option(
      '--adapter <name=folder...>',
      'low-rank adapters, in the layout of PEFT, each served as MODEL:NAME; MODEL:NAME=FOLDER puts it on another model than the first, FOLDER alone on the first for good',
    );
  addLoadingOptions(command)
    .option('--preload', 'load all models at the start (default: the first; others on their first request)')
    .option(
      '--max-model-bytes <n>',
      'memory for the weights of all models; the one that was asked for longest ago is put out (default: what there is)',
      integer,
    )
    .optionsGroup('Server:')
    .option('--host <address>', 'address to listen on (default: 127.0.0.1, this machine alone)')
    .option('--port <n>', 'port; 0 takes a free one (default: 8242)', integer)
    .option('--api-key <key...>', 'keys, one of which requests must bring (default: those of DULTRA_API_KEYS)')
    .option('--no-auth', 'listen on other addresses than this machine without a key')
    .option('--cors <origin...>', 'origins of web pages that may ask, or "*" (default: none)')
    .option('--no-playground', 'no page at /')
    .option('--max-body <bytes>', 'most bytes of a request (default: 1048576)', integer)
    .option('--drain <seconds>', 'time for requests under way after SIGTERM or Ctrl-C (default: 30)', integer)
    .optionsGroup('Engine:')
    .option('--max-rows <n>', 'rows that are decoded at a time (default: 64)', integer)
    .option('--max-queue <n>', 'rows that may wait; more are refused (default: 256)', integer)
    .option('--kv-bytes <n>', 'memory for keys and values of all rows (default: as much as they need)', integer)
    .option(
      '--step-tokens <n>',
      'positions of a forward pass (default: as many as take 50 ms on a GPU, 200 ms on a CPU)',
      integer,
    );
  addQuietOption(command).action(async (flags: ServeFlags) => {
    const { host = '127.0.0.1', port, cors, maxBody, quiet, drain = 30, maxModelBytes, playground } = flags;
    const { maxRows = 64, maxQueue = 256, kvBytes = null, stepTokens = 'auto' } = flags;
    const apiKeys = flags.apiKey ?? (process.env.DULTRA_API_KEYS ?? '').split(',').filter((key) => key !== '');
    const isLocal = LOOPBACK.includes(host);
    if (!isLocal && apiKeys.length === 0 && flags.auth !== false)
      throw new UsageError(
        '--host: an address that others reach needs --api-key, or --no-auth where a proxy asks for one',
      );
    const sources = sourcesOf(flags.model ?? [], flags.adapter ?? []);
    const stopped = stopSignal();
    const engine: EngineOptions = { maxRows, maxQueue, kvBytes, stepTokens };
    const load = ({ model, adapter }: Source): Promise<MaskedDiffusionModel> => {
      const { model: _models, adapter: _adapters, ...others } = flags;
      const one: ModelFlags = {
        ...others,
        ...(model !== undefined && { model }),
        ...(adapter !== undefined && { adapter }),
      };
      return openModel(one, engine);
    };
    const models = Object.fromEntries(
      sources.map((source): [string, ServedModel] => [source.name, () => load(source)]),
    );
    const server = new Server({
      models,
      apiKeys,
      hosts: isLocal ? undefined : null,
      cors,
      maxBodyBytes: maxBody,
      maxModelBytes,
      playground,
      ...(!quiet && { log: (entry: object) => printMessage(JSON.stringify(entry)) }),
    });
    // What cannot be loaded is said now, and not to the first who asks.
    for (const { name } of flags.preload ? sources : sources.slice(0, 1)) await server.load(name);
    const listening = await listen({ server, host, ...(port !== undefined && { port }) });
    printMessage(`listening on ${listening.url}`);
    await stopped;
    printMessage('stopping: requests under way are finished');
    await listening.close(1000 * drain);
  });
}
