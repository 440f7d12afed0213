// The configuration of a training as the command line gives it: a preset, a file, flags, and where each value is from.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import type { Command } from 'commander';
import { type Document, isMap, isScalar, isSeq, LineCounter, type Node, parse, parseDocument } from 'yaml';
import { decodeText, training } from '../../index';
import { type Naming, UsageError } from '../errors';
import { given } from '../values';

/** Values of the flags by their attributes, --set apart. */
export type FlagValues = Readonly<Record<string, unknown>> & {
  config?: string;
  preset?: string;
  set?: readonly [key: string, value: unknown][];
};

/** The flags that stand for a key of the configuration: all of its name, and --output. */
const KEYS_OF_FLAGS: Readonly<Record<string, string>> = { output: 'outputDir' };

/** A key's flag, such as "--max-steps"; undefined: it has none. */
function flagOf(key: string, command: Command): string | undefined {
  const keys = training.STAGES.flatMap(training.configKeys);
  if (!keys.includes(key)) return undefined;
  const option = command.options.find((candidate) => {
    const name = candidate.attributeName();
    return (KEYS_OF_FLAGS[name] ?? name) === key;
  });
  return option?.long ?? undefined;
}

/** Parses --set key=value, the value in YAML, as in a config file. */
export function setting(text: string, before: [string, unknown][] = []): [string, unknown][] {
  const at = text.indexOf('=');
  if (at < 1) throw new UsageError(`--set: expected key=value, got ${JSON.stringify(text)}`);
  try {
    return [...before, [text.slice(0, at), parse(text.slice(at + 1))]];
  } catch (error) {
    throw new UsageError(`--set ${text.slice(0, at)}: ${(error as Error).message}`);
  }
}

/** A file of options, in YAML or JSON. */
export class ConfigFile {
  readonly file: string;
  readonly values: Readonly<Record<string, unknown>>;
  readonly #document: Document.Parsed;
  readonly #lines = new LineCounter();
  readonly #at: readonly string[];

  /**
   * @param flag that names the file, for errors @param at keys that lead to the options
   * @throws UsageError
   */
  constructor(file: string, flag: string, at: readonly string[] = []) {
    this.file = file;
    this.#at = at;
    let values: unknown;
    try {
      // Every JSON document is a YAML document.
      const text = decodeText(readFileSync(file), file);
      this.#document = parseDocument(text, { lineCounter: this.#lines });
      const [error] = this.#document.errors;
      if (error) throw error;
      values = this.#document.toJS();
    } catch (error) {
      const { message } = error as Error;
      throw new UsageError(`${flag}: ${message.startsWith(file) ? message : `${file}: ${message}`}`);
    }
    for (const key of at) values = (values as Record<string, unknown> | null)?.[key];
    if (typeof values !== 'object' || values === null || Array.isArray(values))
      throw new UsageError(`${flag}: ${file}: expected options by name, such as "maxSteps: 200"`);
    // Names the schema, for editors.
    const { $schema: _, ...options } = values as Record<string, unknown>;
    this.values = options;
  }

  /** A value beside the options. */
  get(key: string): unknown {
    return (this.#document.toJS() as Record<string, unknown> | null)?.[key];
  }

  /** The line of an option such as "rewards.fast.type" or "mixture[0].steps", or of the part of it that is there. */
  lineOf(option: string): number | null {
    let node: unknown = this.#document.contents;
    let offset: number | undefined;
    const path = [...this.#at, option].join('.');
    for (const [, index, name] of path.matchAll(/\[(\d+)\]|([^.[\]]+)/g)) {
      if (isMap(node)) {
        const pair = node.items.find(({ key }) => String(isScalar(key) ? key.value : key) === name);
        if (!pair) break;
        offset = (pair.key as Node | null)?.range?.[0] ?? offset;
        node = pair.value;
      } else if (isSeq(node) && index !== undefined) {
        node = node.items[Number(index)];
        offset = (node as Node | null)?.range?.[0] ?? offset;
      } else break;
    }
    return offset === undefined ? null : this.#lines.linePos(offset).line;
  }
}

type Origin = 'preset' | 'file' | 'flag' | '--set';

/** A configuration, and how its user wrote what is in it. */
export class Settings implements Naming {
  readonly #command: Command;
  readonly #preset: string | undefined;
  readonly #file: ConfigFile | null;
  readonly #origins = new Map<string, Origin>();
  readonly #values: Record<string, unknown> = {};

  private constructor(
    command: Command,
    flags: FlagValues,
    { preset, file }: { preset?: { name: string; values: training.TrainConfig }; file: ConfigFile | null },
  ) {
    this.#command = command;
    this.#preset = preset?.name;
    this.#file = file;
    this.#add('preset', { ...preset?.values });
    this.#add('file', file?.values ?? {});
    this.#add('flag', flagValues(flags, command));
    this.#add('--set', Object.fromEntries(flags.set ?? []));
  }

  /** Of a new run: preset, file and flags; later ones win. @throws UsageError */
  static launch(stage: training.Stage, flags: FlagValues, command: Command): Settings {
    const { preset: name, config: file } = flags;
    const presets = training.PRESETS[stage];
    if (name !== undefined && !Object.hasOwn(presets, name))
      throw new UsageError(
        `--preset: expected one of ${Object.keys(presets).join(', ')} for ${stage}, got ${JSON.stringify(name)}`,
      );
    return new Settings(command, flags, {
      ...(name !== undefined && { preset: { name, values: presets[name] } }),
      file: file === undefined ? null : new ConfigFile(file, '--config'),
    });
  }

  /** Of a run that goes on: the options that it began with, and flags. @throws UsageError for flags that cannot count */
  static resume(launch: ConfigFile, flags: FlagValues, command: Command): Settings {
    checkResumeFlags(flags, command);
    const settings = new Settings(command, flags, { file: launch });
    // JSON has no big integers.
    const { seed } = settings.#values;
    if (typeof seed === 'string' && /^\d+$/.test(seed)) settings.#values.seed = BigInt(seed);
    return settings;
  }

  #add(origin: Origin, values: Readonly<Record<string, unknown>>): void {
    for (const [key, value] of Object.entries(values)) {
      // Either says how long the run is; of the same command line, both are one too many.
      const other = key === 'epochs' ? 'maxSteps' : key === 'maxSteps' ? 'epochs' : null;
      if (other !== null && !Object.hasOwn(values, other) && this.#origins.get(other) !== 'flag')
        delete this.#values[other];
      this.#values[key] = value;
      this.#origins.set(key, origin);
    }
  }

  /** The configuration, with `more` in it. */
  config(more: Readonly<Partial<training.TrainConfig>> = {}): training.TrainConfig {
    return { ...this.#values, ...more } as training.TrainConfig;
  }

  /** Whether the user has named a key's value: not a preset, nor nobody. */
  isOwn(key: string): boolean {
    return Object.hasOwn(this.#values, key) && this.#origins.get(key) !== 'preset';
  }

  /** An option of the API, such as "rewards.fast.weight", as it was written. */
  option(name: string): string | null {
    const [key] = name.match(/^[^.[]+/) ?? [''];
    const rest = name.slice(key.length);
    switch (this.#origins.get(key)) {
      case '--set':
        return `--set ${name}`;
      case 'flag':
        return `${flagOf(key, this.#command)}${rest.replace(/^\./, ' ')}`;
      case 'preset':
        return `--preset ${this.#preset}: ${name}`;
      case 'file': {
        const line = this.#file!.lineOf(name);
        return `${this.#file!.file}${line === null ? '' : `, line ${line}`}: ${name}`;
      }
      default: {
        const flag = flagOf(key, this.#command);
        if (flag !== undefined) return `${flag}${rest.replace(/^\./, ' ')}`;
        return training.STAGES.some((stage) => training.configKeys(stage).includes(key)) ? `--set ${name}` : null;
      }
    }
  }

  /** A key that a message about another option mentions. */
  mention(word: string, name: string): string {
    const [key] = name.match(/^[^.[]+/) ?? [''];
    const origin = this.#origins.get(word) ?? this.#origins.get(key);
    if (origin === 'file' || origin === 'preset') return word;
    return flagOf(word, this.#command) ?? word;
  }
}

/** The flags that are keys of a configuration. */
function flagValues(flags: FlagValues, command: Command): Record<string, unknown> {
  const values: Record<string, unknown> = {};
  for (const option of command.options) {
    const name = option.attributeName();
    const key = KEYS_OF_FLAGS[name] ?? name;
    if (flagOf(key, command) !== option.long) continue;
    const value = flags[name];
    // JSON has no big integers.
    values[key] = typeof value === 'bigint' && Number.isSafeInteger(Number(value)) ? Number(value) : value;
  }
  return given(values);
}

/** Flags that --resume takes beside it: none changes what is computed. */
const WITH_RESUME = [
  'resume',
  'maxSteps',
  'epochs',
  'saveEvery',
  'roles',
  'set',
  'device',
  'threads',
  'dryRun',
  'samples',
  'json',
  'quiet',
  'logRanks',
];

/** Keys that --set may change in a run that goes on. */
const FREE = training.FREE_KEYS.filter((key) => key !== 'outputDir');

/** Refuses flags that cannot count in a run that goes on. */
function checkResumeFlags(flags: FlagValues, command: Command): void {
  const refuse = (name: string) => {
    throw new UsageError(
      `${name}: not together with --resume, which goes on with what the run began with; only --max-steps, --epochs, ` +
        `--save-every, --roles and --set of ${FREE.join(', ')} can change`,
    );
  };
  for (const option of command.options) {
    const name = option.attributeName();
    if (command.getOptionValueSource(name) === 'cli' && !WITH_RESUME.includes(name))
      refuse(option.long ?? option.flags);
  }
  for (const [key] of flags.set ?? []) if (!FREE.includes(key)) refuse(`--set ${key}`);
}

/** A value's path from every working directory, also behind "gsm8k:"; anything else as it is. */
export function absolute<T>(value: T, exists: (file: string) => boolean): T | string {
  if (typeof value !== 'string') return value;
  if (exists(value)) return path.resolve(value);
  const [name, ...rest] = value.split(':');
  const file = rest.join(':');
  return file !== '' && exists(file) ? `${name}:${path.resolve(file)}` : value;
}
