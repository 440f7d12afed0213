// The folder of a run. Everything in it is either complete or not there: files and checkpoint folders get their names
// by a rename after their bytes are on the disk, so that a run survives being killed at any moment.
//
//   config.json                  options, seed, version, device, model, data set
//   metrics.jsonl                one line per step
//   events.out.tfevents.…        what of it is a series, for TensorBoard
//   samples.jsonl                a few completions, with prompts and rewards
//   .lock                        the process that is writing, while it is
//   checkpoints/step-00000100/   config.json, model.safetensors, tokenizer files (what `loadModel` reads),
//                                trainer.safetensors (fp32 masters and moments of what trains),
//                                state.json (step, best evaluation), adapter/ with lora
import { existsSync } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import { DUltraError, optionError } from '../errors';
import { syncFolder, writeError, writeFileAtomic } from '../files/atomic';
import { readSafetensors, type TensorValue, writeSafetensors } from '../files/safetensors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { saveAdapter } from '../model/adapter';
import type { ModelTrainer } from '../model/trainer';
import { FREE_KEYS } from './config-keys';
import { lockRun } from './run-lock';
import type { CompletionSample } from './samples';
import { EventWriter, tagOf } from './tensorboard';

/** One line of metrics.jsonl. */
export type MetricsLine = { step: number; time: number } & Record<string, number | boolean | null>;

/** What a run remembers beside weights and moments. Random numbers and data are functions of the seed and the step. */
export interface RunState {
  kind: string;
  step: number;
  /** Best evaluation so far. */
  best: { step: number; value: number } | null;
  /** Evaluations since then. */
  evaluationsWithoutBest: number;
}

const STEP_FOLDER = /^step-(\d{8,})$/;
const SAMPLES_FILE = 'samples.jsonl';
const STATE_FILE = 'state.json';
const CONFIG_FILE = 'config.json';
const TRAINER_FILE = 'trainer.safetensors';
const stepName = (step: number) => `step-${String(step).padStart(8, '0')}`;

/** Options that a resumed run may change. */
const FREE_OPTIONS: readonly string[] = ['resume', ...FREE_KEYS];

function parseLines<T>(text: string): T[] {
  const lines: T[] = [];
  for (const line of text.split('\n')) {
    if (line === '') continue;
    try {
      lines.push(JSON.parse(line) as T);
    } catch {
      // A process that was killed leaves half a line; nothing after it counts.
      break;
    }
  }
  return lines;
}

/** Content of config.json. */
type RunConfig = { kind: string; options: Readonly<Record<string, unknown>> } & Readonly<Record<string, unknown>>;

/** What is compared and what is stored must have gone through JSON alike. */
const throughJson = (config: RunConfig): RunConfig => JSON.parse(JSON.stringify(config));

/** A run folder that is being written. */
export class RunFolder {
  readonly folder: string;
  readonly #keepLast: number;
  #metrics: FileHandle | null = null;
  #samples: FileHandle | null = null;
  #unplotted: readonly string[] = [];
  #events: EventWriter | null = null;
  #unlock: (() => Promise<void>) | null = null;

  private constructor(folder: string, keepLast: number) {
    this.folder = folder;
    this.#keepLast = keepLast;
  }

  /**
   * Refuses a folder that a run cannot begin in, nor go on, without writing anything.
   * @param config content of config.json; a run that is resumed must have the same `kind` and `options`
   * @throws RangeError where the folder holds a run and `resume` is off, or another run; DUltraError BAD_CHECKPOINT
   */
  static async check(folder: string, config: RunConfig, { resume }: { resume: boolean }): Promise<void> {
    const file = path.join(folder, CONFIG_FILE);
    if (!existsSync(file)) return;
    if (!resume)
      throw optionError(
        RangeError,
        'outputDir',
        `${folder} holds a run already; resume goes on with it, and a new run needs another folder`,
      );
    const run = new RunFolder(folder, 1);
    if (!existsSync(run.#checkpoints) || (await run.checkpoints()).length === 0) return;
    const plain = throughJson(config);
    let stored: RunConfig;
    try {
      stored = JSON.parse(await readFile(file, 'utf8')) as RunConfig;
    } catch (cause) {
      throw new DUltraError('BAD_CHECKPOINT', `${file}: ${(cause as Error).message}`, { cause });
    }
    if (stored.kind !== plain.kind)
      throw optionError(
        RangeError,
        'resume',
        `${folder} holds a run of kind ${JSON.stringify(stored.kind)}, not ${JSON.stringify(plain.kind)}`,
      );
    for (const key of new Set([...Object.keys(stored.options ?? {}), ...Object.keys(plain.options)])) {
      const [then, now] = [stored.options?.[key], plain.options[key]].map((value) => JSON.stringify(value));
      if (!FREE_OPTIONS.includes(key) && then !== now)
        throw optionError(RangeError, key, `expected ${then}, with which the run began, got ${now}`);
    }
  }

  /**
   * Makes a run folder, or opens the one that is there.
   * @throws as {@link RunFolder.check}; RangeError where another process is writing it; DUltraError WRITE_FAILED.
   */
  static async open(
    folder: string,
    config: RunConfig,
    { resume, keepLast }: { resume: boolean; keepLast: number },
  ): Promise<RunFolder> {
    await RunFolder.check(folder, config, { resume });
    const file = path.join(folder, CONFIG_FILE);
    const run = new RunFolder(folder, keepLast);
    try {
      await mkdir(path.join(folder, 'checkpoints'), { recursive: true });
      run.#unlock = await lockRun(folder);
      // A run without a checkpoint has nothing to go on with: it begins again, with whatever options.
      if ((await run.checkpoints()).length === 0)
        await writeFileAtomic(file, `${JSON.stringify(throughJson(config), null, 2)}\n`);
      // What a killed process was writing or removing.
      for (const name of await readdir(run.#checkpoints))
        if (name.startsWith('.')) await rm(path.join(run.#checkpoints, name), { recursive: true, force: true });
    } catch (cause) {
      await run.close();
      throw cause instanceof RangeError ? cause : writeError(folder, cause);
    }
    return run;
  }

  /** A run folder that another process writes: to {@link restore} from. */
  static reader(folder: string): RunFolder {
    return new RunFolder(folder, 1);
  }

  get #checkpoints(): string {
    return path.join(this.folder, 'checkpoints');
  }

  /** Steps of the complete checkpoints, ascending. */
  async checkpoints(): Promise<number[]> {
    const steps = (await readdir(this.#checkpoints)).map((name) => Number(STEP_FOLDER.exec(name)?.[1] ?? Number.NaN));
    return steps.filter((step) => !Number.isNaN(step)).sort((a, b) => a - b);
  }

  /** Folder of a checkpoint, which `loadModel` takes. */
  checkpointFolder(step: number): string {
    return path.join(this.#checkpoints, stepName(step));
  }

  /**
   * Brings the last checkpoint's state into the trainer and its model; null where there is none. @throws DUltraError
   * BAD_CHECKPOINT
   */
  async restore(trainer: ModelTrainer): Promise<RunState | null> {
    const step = existsSync(this.#checkpoints) ? (await this.checkpoints()).at(-1) : undefined;
    if (step === undefined) return null;
    const folder = this.checkpointFolder(step);
    let state: RunState;
    try {
      state = JSON.parse(await readFile(path.join(folder, STATE_FILE), 'utf8')) as RunState;
    } catch (cause) {
      throw new DUltraError('BAD_CHECKPOINT', `${folder}: ${(cause as Error).message}`, { cause });
    }
    const tensors = [...(await readSafetensors(path.join(folder, TRAINER_FILE)))].map(([name, { shape, data }]) => ({
      name,
      shape: [...shape],
      data: data as Float32Array,
    }));
    try {
      await trainer.loadState({ step: state.step, tensors });
    } catch (cause) {
      throw new DUltraError('BAD_CHECKPOINT', `${folder}: ${(cause as Error).message}`, { cause });
    }
    return state;
  }

  /** Removes what a process left that was killed between its last checkpoint, of `state`, and the removal of older ones. */
  async tidy(state: RunState): Promise<void> {
    await this.#removeOld(state).catch((cause) => {
      throw writeError(this.folder, cause);
    });
  }

  /**
   * Opens the logs. Lines after `step` belong to work that is about to be done again, and go.
   * @param unplotted metrics that TensorBoard does not get
   */
  async openLogs(
    step: number,
    { tensorboard, unplotted }: { tensorboard: boolean; unplotted: readonly string[] },
  ): Promise<void> {
    this.#unplotted = unplotted;
    try {
      const [metrics, lines] = await this.#openLines<MetricsLine>('metrics.jsonl', step);
      this.#metrics = metrics;
      [this.#samples] = await this.#openLines<CompletionSample>(SAMPLES_FILE, step);
      if (!tensorboard) return;
      // Made anew from the lines that count, so that no step occurs twice.
      const old = (await readdir(this.folder)).filter((name) => name.startsWith('events.out.tfevents.'));
      for (const name of old) await rm(path.join(this.folder, name));
      const time = lines[0]?.time ?? Date.now() / 1000;
      this.#events = await EventWriter.create(
        path.join(this.folder, `events.out.tfevents.${Math.floor(time)}.dultra`),
        time,
      );
      for (const line of lines) await this.#writeEvent(line);
    } catch (cause) {
      throw writeError(this.folder, cause);
    }
  }

  /** Opens a file of JSON lines to add to it, without its lines after `step`. */
  async #openLines<T extends { step: number }>(name: string, step: number): Promise<[FileHandle, T[]]> {
    const file = path.join(this.folder, name);
    const lines = existsSync(file)
      ? parseLines<T>(await readFile(file, 'utf8')).filter((line) => line.step <= step)
      : [];
    await writeFileAtomic(file, lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
    return [await open(file, 'a'), lines];
  }

  async #writeEvent({ step, time, ...values }: MetricsLine): Promise<void> {
    const scalars = Object.entries(values).flatMap(([name, value]) => {
      const tag = this.#unplotted.includes(name) ? null : tagOf(name);
      return tag !== null && typeof value === 'number' ? [[tag, value] as const] : [];
    });
    await this.#events?.write(step, time, Object.fromEntries(scalars));
  }

  /** Adds a line to the logs. @throws DUltraError WRITE_FAILED */
  async log(line: MetricsLine): Promise<void> {
    try {
      await this.#metrics?.appendFile(`${JSON.stringify(line)}\n`);
      await this.#writeEvent(line);
    } catch (cause) {
      throw writeError(this.folder, cause);
    }
  }

  /** Adds completions to samples.jsonl. @throws DUltraError WRITE_FAILED */
  async logSamples(samples: readonly CompletionSample[]): Promise<void> {
    try {
      await this.#samples?.appendFile(samples.map((sample) => `${JSON.stringify(sample)}\n`).join(''));
    } catch (cause) {
      throw writeError(this.folder, cause);
    }
  }

  /**
   * Writes a checkpoint; then removes those beyond `keepLast` and not the best.
   * @throws DUltraError WRITE_FAILED, with all earlier checkpoints as they were.
   */
  async save(model: MaskedDiffusionModel, trainer: ModelTrainer, state: RunState): Promise<void> {
    const temporary = path.join(this.#checkpoints, `.${stepName(state.step)}.${process.pid}.tmp`);
    const folder = this.checkpointFolder(state.step);
    try {
      // Log lines up to here are part of what the checkpoint continues.
      await this.#metrics?.datasync();
      await this.#samples?.datasync();
      await rm(temporary, { recursive: true, force: true });
      await mkdir(temporary);
      await model.save(temporary);
      const { tensors } = await trainer.state();
      if (trainer.lora) await saveAdapter(path.join(temporary, 'adapter'), trainer, tensors, model);
      const map = new Map<string, TensorValue>(
        tensors.map(({ name, shape, data }) => [name, { dtype: 'F32', shape, data }]),
      );
      await writeSafetensors(path.join(temporary, TRAINER_FILE), map);
      await writeFileAtomic(path.join(temporary, STATE_FILE), `${JSON.stringify(state, null, 2)}\n`);
      await syncFolder(temporary);
      // A run that is resumed without its last lines comes here again.
      if (existsSync(folder)) await this.#remove(state.step);
      await rename(temporary, folder);
      await syncFolder(this.#checkpoints);
      await this.#removeOld(state);
    } catch (cause) {
      await rm(temporary, { recursive: true, force: true }).catch(() => {});
      throw writeError(folder, cause);
    }
  }

  /** Removes checkpoints beyond `keepLast` and not the best. */
  async #removeOld({ best }: RunState): Promise<void> {
    for (const step of (await this.checkpoints()).slice(0, -this.#keepLast))
      if (step !== best?.step) await this.#remove(step);
  }

  /** A folder that is being removed must not look like a checkpoint. */
  async #remove(step: number): Promise<void> {
    const going = path.join(this.#checkpoints, `.${stepName(step)}.${process.pid}.old`);
    await rename(this.checkpointFolder(step), going);
    await rm(going, { recursive: true, force: true });
  }

  async close(): Promise<void> {
    await this.#metrics?.close();
    await this.#samples?.close();
    await this.#events?.close();
    await this.#unlock?.();
    this.#metrics = null;
    this.#samples = null;
    this.#events = null;
    this.#unlock = null;
  }
}
