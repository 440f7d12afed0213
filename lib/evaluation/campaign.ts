// Several models and seeds on one data set, in a folder from which an interrupted run continues.
import { createReadStream, createWriteStream, existsSync, type WriteStream } from 'node:fs';
import { mkdir, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { type Dataset, open, type Split } from '../data';
import { readLines } from '../data/text-records';
import { currentGroup } from '../distributed/mpi';
import { DUltraError, optionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import type { CausalModel } from '../model/causal-model';
import { checkInteger, checkKeys } from '../options';
import { cacheObject } from '../sampling/caches';
import { samplerObject } from '../sampling/samplers';
import { namedForms } from '../sampling/text-form';
import { decodeText, parseJson, reasonOf } from '../text';
import { accuracyUnderParallelism } from './aup';
import {
  type EvaluateOptions,
  type Evaluation,
  type EvaluationConfig,
  evaluate,
  meanAndSd,
  type SampleRecord,
  type SampleStore,
  SHARED_KEYS,
  scoreName,
} from './evaluate';

/** Mean and sample standard deviation over seeds. */
export interface Spread {
  mean: number;
  /** 0 for one seed. */
  sd: number;
}

/** A sampler under one model, over all seeds. */
export interface CampaignRow {
  model: string;
  sampler: string;
  /** Share of right answers. */
  accuracy: Spread;
  /** Forward passes per prompt. */
  nfe: Spread;
  /** The same, each weighted by the share of the row that it computed. */
  fullForwards: Spread;
  /** By both rules of counting: all positions, and up to the first end of sequence. */
  tokensPerForward: { generated: Spread; untilEos: Spread };
  /** Tokens up to the first end of sequence, prompts excluded, per second of wall time. */
  tokensPerSecond: Spread;
}

/** A rule's curve under one model. */
export interface CampaignCurve {
  model: string;
  group: string;
  /**
   * d3LLM's accuracy under parallelism, with tokens up to the first end of sequence, against the best accuracy of the
   * campaign.
   */
  aup: number;
}

/** Output of {@link evaluateCampaign}: plain JSON. */
export interface Campaign {
  /** Of the first model and seed; the others differ in `model` and `seed` alone. */
  config: EvaluationConfig;
  models: string[];
  seeds: number[];
  rows: CampaignRow[];
  curves: CampaignCurve[];
  /** By model and seed. */
  evaluations: { model: string; seed: number; evaluation: Evaluation }[];
}

/** Options of {@link evaluateCampaign}. */
export interface CampaignOptions extends Omit<EvaluateOptions, 'seed' | 'store' | 'onProgress'> {
  /** Models by the names that tables give them, each opened when its turn comes. */
  models: Readonly<Record<string, () => Promise<MaskedDiffusionModel | CausalModel>>>;
  /** Seeds. Default [0]. */
  seeds?: readonly number[] | undefined;
  /** Group of a sampler, for curves. Default: its name up to ":". */
  group?: ((sampler: string) => string) | undefined;
  /**
   * Folder for config.json, samples.jsonl and summary.json. A campaign that is there, of the same configuration, goes
   * on. Default: none.
   */
  outputDir?: string | undefined;
  /** Called with the number of prompts done, over all models and seeds. */
  onProgress?:
    | ((progress: { model: string; seed: number; sampler: string; done: number; total: number }) => void)
    | undefined;
}

/** A line of samples.jsonl. */
interface Line extends SampleRecord {
  model: string;
  seed: number;
  sampler: string;
  index: number;
}

const KEYS = [...SHARED_KEYS, 'models', 'seeds', 'group', 'outputDir'] as const;

const keyOf = (model: string, seed: number, sampler: string, index: number) =>
  JSON.stringify([model, seed, sampler, index]);

function parseSample(text: string, where: string): { key: string; record: SampleRecord } {
  try {
    const { model, seed, sampler, index, ...record } = parseJson(text) as Line;
    return { key: keyOf(model, seed, sampler, index), record };
  } catch (cause) {
    throw new DUltraError('BAD_DATASET', `${where}: ${reasonOf(cause)}`, { cause });
  }
}

/** The file of samples, for reading and appending. An incomplete last line (after a kill) is dropped. */
class SampleFile {
  readonly #known: Map<string, SampleRecord>;
  readonly #begin: () => Promise<WriteStream>;
  #stream: Promise<WriteStream> | null = null;

  private constructor(known: Map<string, SampleRecord>, begin: () => Promise<WriteStream>) {
    this.#known = known;
    this.#begin = begin;
  }

  /** Reads what is there. @param prepare makes what the file needs, before the first sample is written */
  static async open(file: string, prepare: () => Promise<void>): Promise<SampleFile> {
    const known = new Map<string, SampleRecord>();
    if (existsSync(file)) {
      const { size } = await stat(file);
      let end = 0;
      for await (const { bytes, line } of readLines(createReadStream(file), file)) {
        const begin = end;
        end += bytes.length + 1;
        // The last line has no newline: it is empty, or was cut off.
        if (end > size) await truncate(file, begin);
        else if (bytes.length > 0) {
          const { key, record } = parseSample(decodeText(bytes, file, line), `${file}, line ${line}`);
          known.set(key, record);
        }
      }
    }
    return new SampleFile(known, async () => {
      await prepare();
      return createWriteStream(file, { flags: 'a' });
    });
  }

  /** The file to write to, made where it is not there. */
  open(): Promise<WriteStream> {
    this.#stream ??= this.#begin();
    return this.#stream;
  }

  store(model: string, seed: number): SampleStore {
    return {
      get: (sampler, index) => this.#known.get(keyOf(model, seed, sampler, index)),
      put: async (sampler, first, samples) => {
        const lines = samples.map((record, i) =>
          JSON.stringify({ model, seed, sampler, index: first + i, ...record } satisfies Line),
        );
        const stream = await this.open();
        await new Promise<void>((resolve, reject) => {
          stream.write(`${lines.join('\n')}\n`, (error) => (error ? reject(error) : resolve()));
        });
      },
    };
  }

  async close(): Promise<void> {
    const stream = await this.#stream?.catch(() => null);
    if (stream) await new Promise<void>((resolve) => stream.end(resolve));
  }
}

/** The identity of a campaign: everything that results depend on. */
function identityOf(options: CampaignOptions & { dataset: Dataset }, seeds: readonly number[]): string {
  const {
    dataset,
    split = 'test',
    score,
    caches,
    count,
    maxTokens,
    blockLength,
    temperature = 0,
    stopAtEos = true,
  } = options;
  const samplers = Object.entries(namedForms('samplers', options.samplers, samplerObject));
  const shown = Object.fromEntries(
    samplers.map(([name, sampler]) => [name, typeof sampler === 'function' ? 'custom' : sampler]),
  );
  const { name, source = null } = dataset;
  const lengths = { maxTokens: maxTokens ?? dataset.genLength, blockLength: blockLength ?? null };
  const identity = {
    dataset: name,
    source,
    split,
    score: scoreName(dataset, score),
    samplers: shown,
    caches: caches === undefined ? null : namedForms('caches', caches, cacheObject),
    count: count ?? null,
    ...lengths,
    temperature,
    stopAtEos,
  };
  return `${JSON.stringify({ ...identity, models: Object.keys(options.models), seeds }, null, 1)}\n`;
}

/**
 * Opens the folder; nothing is written before the first sample. @throws RangeError where it holds a campaign of another
 * configuration
 */
async function openFolder(folder: string, identity: string): Promise<SampleFile> {
  const file = path.join(folder, 'config.json');
  const before = existsSync(file) ? await readFile(file, 'utf8') : null;
  if (before !== null && before !== identity)
    throw optionError(
      RangeError,
      'outputDir',
      `${folder} holds an evaluation of another configuration (see its config.json); give another folder`,
    );
  return SampleFile.open(path.join(folder, 'samples.jsonl'), async () => {
    await mkdir(folder, { recursive: true });
    if (before === null) await writeFile(file, identity);
  });
}

/**
 * Evaluates every sampler under every model with every seed, and sums up over the seeds. With `outputDir`, every sample
 * is written when it is done, and the same call continues after an interruption.
 * @throws as {@link evaluate}; RangeError where `outputDir` holds something else; `signal.reason`.
 */
export async function evaluateCampaign(options: CampaignOptions): Promise<Campaign> {
  checkKeys('options', options, KEYS);
  const dataset = await open(options.dataset, { splits: [(options.split ?? 'test') as Split] });
  const {
    models,
    seeds = [0],
    group = (sampler) => sampler.split(':', 1)[0],
    outputDir,
    onProgress,
    ...shared
  } = options;
  if (typeof models !== 'object' || models === null || Object.keys(models).length === 0)
    throw optionError(TypeError, 'models', 'expected at least one, by name');
  for (const [i, seed] of seeds.entries()) checkInteger(`seeds[${i}]`, seed, { min: 0, max: Number.MAX_SAFE_INTEGER });
  if (seeds.length === 0) throw optionError(RangeError, 'seeds', 'expected at least one, got none');
  // One process writes for all.
  const isWritten = outputDir !== undefined && currentGroup().rank === 0;
  const file = !isWritten ? null : await openFolder(outputDir, identityOf({ ...options, dataset }, seeds));
  const names = Object.keys(models);
  const evaluations: Campaign['evaluations'] = [];
  try {
    for (const name of names) {
      const model = await models[name]();
      try {
        for (const seed of seeds) {
          const before = evaluations.length;
          const report = ({ sampler, done, total }: { sampler: string; done: number; total: number }) =>
            onProgress?.({
              model: name,
              seed,
              sampler,
              done: before * total + done,
              total: total * names.length * seeds.length,
            });
          const evaluation = await evaluate(model, {
            ...shared,
            dataset,
            seed,
            onProgress: report,
            ...(file && { store: file.store(name, seed) }),
          });
          evaluations.push({ model: name, seed, evaluation });
        }
        await file?.open();
      } finally {
        model.dispose();
      }
    }
  } finally {
    await file?.close();
  }
  const campaign = summarise(names, [...seeds], evaluations, group);
  if (isWritten) {
    const { evaluations: _, ...summary } = campaign;
    await writeFile(path.join(outputDir, 'summary.json'), `${JSON.stringify(summary, null, 1)}\n`);
  }
  return campaign;
}

function summarise(
  models: string[],
  seeds: number[],
  evaluations: Campaign['evaluations'],
  group: (sampler: string) => string,
): Campaign {
  const rows: CampaignRow[] = [];
  for (const model of models) {
    const own = evaluations.filter((entry) => entry.model === model).map(({ evaluation }) => evaluation);
    for (const [at, { name: sampler }] of own[0].results.entries()) {
      const results = own.map(({ results }) => results[at]);
      const spread = (value: (result: (typeof results)[number]) => number) => meanAndSd(results.map(value));
      rows.push({
        model,
        sampler,
        accuracy: spread(({ accuracy }) => accuracy),
        nfe: spread(({ nfe }) => nfe.mean),
        fullForwards: spread(({ fullForwards }) => fullForwards.mean),
        tokensPerForward: {
          generated: spread(({ tokensPerForward }) => tokensPerForward.generated),
          untilEos: spread(({ tokensPerForward }) => tokensPerForward.untilEos),
        },
        tokensPerSecond: spread(({ tokensPerSecond }) => tokensPerSecond),
      });
    }
  }
  const bestAccuracy = 100 * Math.max(...rows.map(({ accuracy }) => accuracy.mean));
  const curves: CampaignCurve[] = [];
  for (const model of models)
    for (const name of new Set(rows.map(({ sampler }) => group(sampler)))) {
      const points = rows
        .filter((row) => row.model === model && group(row.sampler) === name)
        .map(({ accuracy, tokensPerForward }) => ({
          accuracy: 100 * accuracy.mean,
          tokensPerForward: tokensPerForward.untilEos.mean,
        }));
      curves.push({ model, group: name, aup: accuracyUnderParallelism(points, { bestAccuracy }) });
    }
  return { config: evaluations[0].evaluation.config, models, seeds, rows, curves, evaluations };
}
