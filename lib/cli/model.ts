// Options of the model and its device, and loading with a progress bar.
import { type Command, Option } from 'commander';
import {
  EMBEDDED_MODELS,
  type EngineOptions,
  type LoadModelOptions,
  type LoadProgress,
  loadModel,
  type MaskedDiffusionModel,
} from '../index';
import { interruptSignal } from './errors';
import { formatBytes, type OutputFlags, printMessage } from './output';
import { ProgressBar } from './progress';
import { given, integer } from './values';

/** Flags of {@link addModelOptions} and {@link addDeviceOptions}. */
export interface ModelFlags
  extends OutputFlags,
    Pick<
      LoadModelOptions,
      'device' | 'dtype' | 'compute' | 'quantize' | 'threads' | 'revision' | 'planner' | 'maskTokenId'
    > {
  model?: string;
  adapter?: string;
  /** `blockLength` of {@link LoadModelOptions}; --block-length is that of decoding. */
  attendedBlock?: number;
}

/** Adds --device and its kin. */
export function addDeviceOptions(command: Command): Command {
  return command
    .option('--revision <name>', 'branch, tag or commit of a hub id (default: main)')
    .addOption(new Option('--device <name>', 'auto, cpu, cuda or cuda:N; dultra info lists them (default: auto)'))
    .addOption(
      new Option('--dtype <type>', 'how weights are held (default: as in the file)').choices([
        'auto',
        'float32',
        'bfloat16',
        'float16',
      ]),
    )
    .addOption(
      new Option(
        '--compute <type>',
        'arithmetic of matrix products; bfloat16 needs CUDA or AVX-512 BF16, int8 is for quantised weights (default: float32)',
      ).choices(['float32', 'bfloat16', 'int8']),
    )
    .addOption(
      new Option('--quantize <bits>', 'quantises the matrices as they are loaded, to 8 or 4 bits').choices([
        'q8',
        'q4',
      ]),
    )
    .option('--threads <n>', 'CPU threads; the result does not depend on it (default: all)', integer);
}

/** Adds what some checkpoints do not say of themselves. */
export const addCheckpointOptions = (command: Command): Command =>
  command
    .option('--mask-token-id <id>', 'id of the mask token, where neither the files nor the family name it', integer)
    .option(
      '--attended-block <n>',
      'positions of a block that the model attends by, where its files do not say',
      integer,
    );

/** The options of `loadModel` that the flags give. */
export const loadOptions = ({
  planner,
  device,
  dtype,
  compute,
  quantize,
  threads,
  revision,
  maskTokenId,
  attendedBlock,
}: ModelFlags) =>
  given({ planner, device, dtype, compute, quantize, threads, revision, maskTokenId, blockLength: attendedBlock });

/** Adds --adapter. */
export const addAdapterOption = (command: Command): Command =>
  command
    .optionsGroup('Model:')
    .option('--adapter <folder>', 'low-rank adapter to merge into the model, in the layout of PEFT');

/** Adds --model and its kin. */
export function addModelOptions(command: Command): Command {
  command
    .optionsGroup('Model:')
    .option(
      '-m, --model <folder|id>',
      `checkpoint or run folder, hub id such as GSAI-ML/LLaDA-8B-Instruct, or embedded model: ${EMBEDDED_MODELS.join(', ')} (default: the first)`,
    );
  return addLoadingOptions(addAdapterOption(command));
}

/** Adds what models are loaded with, whichever they are. */
export function addLoadingOptions(command: Command): Command {
  command.option('--planner <folder>', "planner head for a model that has none (default: the checkpoint's own)");
  return addDeviceOptions(addCheckpointOptions(command));
}

/** Weights of fewer bytes load too fast for a bar. */
const LARGE_MODEL = 1e9;

/**
 * Reports downloads and the loading of large models on stderr: a bar in a terminal; elsewhere a line per file that is
 * downloaded.
 */
class LoadReport {
  readonly #bar = new ProgressBar('{what} {bar} {percentage}% of {size}, {eta_formatted} left');
  #what = '';

  update({ stage, file, loadedBytes, totalBytes }: LoadProgress): void {
    const what = stage === 'download' ? (file ?? '') : 'weights';
    if (stage === 'weights' && (totalBytes < LARGE_MODEL || !process.stderr.isTTY)) {
      this.stop();
      return;
    }
    if (!process.stderr.isTTY) {
      if (what !== this.#what) printMessage(`downloading ${what} (${formatBytes(totalBytes)})`);
      this.#what = what;
      return;
    }
    if (what !== this.#what) this.stop();
    this.#what = what;
    this.#bar.update(loadedBytes, totalBytes, { what, size: formatBytes(totalBytes) });
  }

  stop(): void {
    this.#bar.stop();
  }
}

/** Runs `work` with what reports its progress on stderr; undefined: it is to be quiet. */
export async function reportLoading<T>(
  quiet: boolean | undefined,
  work: (report: ((progress: LoadProgress) => void) | undefined) => Promise<T>,
): Promise<T> {
  const report = new LoadReport();
  try {
    return await work(quiet ? undefined : (progress) => report.update(progress));
  } finally {
    report.stop();
  }
}

/**
 * Loads the model that the flags name, with its adapter merged, and its progress on stderr; stops on Ctrl-C.
 */
export async function openModel(flags: ModelFlags, engine?: EngineOptions): Promise<MaskedDiffusionModel> {
  const { model: source, adapter, quiet } = flags;
  const model = await reportLoading(quiet, (onProgress) =>
    loadModel(source, { ...loadOptions(flags), engine, signal: interruptSignal, onProgress }),
  );
  if (adapter === undefined) return model;
  try {
    // The model keeps the merged weights.
    (await model.loadAdapter(adapter)).dispose();
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}
