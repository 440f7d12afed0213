// dultra serve: an OpenAI-compatible server.
import type { Command } from 'commander';
import { listen } from '../../server';
import { UsageError } from '../errors';
import { addModelOptions, type ModelFlags, openModel } from '../model';
import { addQuietOption, printMessage } from '../output';
import { integer } from '../values';

interface ServeFlags extends ModelFlags {
  name?: string;
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

const LOOPBACK = ['127.0.0.1', '::1', 'localhost'];

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
      'Answers /v1/chat/completions, /v1/completions and /v1/models as OpenAI does, /health, and /metrics for Prometheus. ' +
        'Requests at the same time share forward passes; none changes the answer of another. docs/serving.md has the rest.',
    );
  addModelOptions(command);
  command
    .optionsGroup('Server:')
    .option('--name <name>', 'name of the model in requests (default: dultra)')
    .option('--host <address>', 'address to listen on (default: 127.0.0.1, this machine alone)')
    .option('--port <n>', 'port; 0 takes a free one (default: 8242)', integer)
    .option('--api-key <key...>', 'keys, one of which requests must bring (default: those of DULTRA_API_KEYS)')
    .option('--no-auth', 'listen on other addresses than this machine without a key')
    .option('--cors <origin...>', 'origins of web pages that may ask, or "*" (default: none)')
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
    const { name = 'dultra', host = '127.0.0.1', port, cors, maxBody, quiet, drain = 30 } = flags;
    const { maxRows = 64, maxQueue = 256, kvBytes = null, stepTokens = 'auto' } = flags;
    const apiKeys = flags.apiKey ?? (process.env.DULTRA_API_KEYS ?? '').split(',').filter((key) => key !== '');
    const isLocal = LOOPBACK.includes(host);
    if (!isLocal && apiKeys.length === 0 && flags.auth !== false)
      throw new UsageError(
        '--host: an address that others reach needs --api-key, or --no-auth where a proxy asks for one',
      );
    const stopped = stopSignal();
    await using model = await openModel(flags, { maxRows, maxQueue, kvBytes, stepTokens });
    const listening = await listen({
      models: { [name]: model },
      host,
      ...(port !== undefined && { port }),
      apiKeys,
      hosts: isLocal ? undefined : null,
      ...(cors && { cors }),
      ...(maxBody !== undefined && { maxBodyBytes: maxBody }),
      ...(!quiet && { log: (entry: object) => printMessage(JSON.stringify(entry)) }),
    });
    printMessage(`listening on ${listening.url}`);
    await stopped;
    printMessage('stopping: requests under way are finished');
    await listening.close(1000 * drain);
  });
}
