// generation_config.json: which of its keys are read here, which callers say themselves, and which nothing applies.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { badFile, readJsonObject } from '../files/json';
import { checkKeyTable, isEmpty, type KeyTable, showKey } from '../files/key-table';
import { show } from '../text';

/**
 * Settings of transformers that options say here (how to draw, how long), that have no effect without a setting which
 * is named where it is on, or that change no token.
 */
const NOT_TAKEN = [
  'do_sample',
  'temperature',
  'top_k',
  'top_p',
  'top_h',
  'min_p',
  'typical_p',
  'epsilon_cutoff',
  'eta_cutoff',
  'seed',
  'max_length',
  'max_new_tokens',
  'max_time',
  'num_return_sequences',
  'early_stopping',
  'length_penalty',
  'low_memory',
  'use_cache',
  'cache_implementation',
  'cache_config',
  'renormalize_logits',
  'remove_invalid_values',
  'output_scores',
  'output_logits',
  'output_attentions',
  'output_hidden_states',
  'return_dict_in_generate',
  'return_legacy_cache',
  'prefill_chunk_size',
  'compile_config',
  'disable_compile',
  'token_healing',
] as const;

/** Settings that choose other tokens, with the values for which they do not. */
const NOT_APPLIED: Readonly<Record<string, readonly unknown[]>> = {
  repetition_penalty: [1],
  encoder_repetition_penalty: [1],
  no_repeat_ngram_size: [0],
  encoder_no_repeat_ngram_size: [0],
  min_length: [0],
  min_new_tokens: [0],
  num_beams: [1],
  num_beam_groups: [1],
  diversity_penalty: [0],
  penalty_alpha: [0],
  guidance_scale: [1],
  suppress_tokens: [],
  begin_suppress_tokens: [],
  bad_words_ids: [],
  force_words_ids: [],
  constraints: [],
  sequence_bias: [],
  forced_bos_token_id: [],
  forced_eos_token_id: [],
  forced_decoder_ids: [],
  exponential_decay_length_penalty: [],
  watermarking_config: [],
  dola_layers: [],
};

/** Texts that end a completion: looked for where there is a tokenizer. */
const STOP_STRINGS = 'stop_strings';

/** Keys of generation_config.json, which older versions of transformers write into config.json. */
export const GENERATION_KEYS: readonly string[] = [...NOT_TAKEN, ...Object.keys(NOT_APPLIED), STOP_STRINGS];

const TABLE: KeyTable = {
  read: ['eos_token_id', 'gen_length', 'block_length', 'sampler'],
  accepted: {},
  harmless: [
    ...GENERATION_KEYS,
    '_from_model_config',
    'transformers_version',
    'pad_token_id',
    'bos_token_id',
    'mask_token_id',
    'decoder_start_token_id',
    /^(assistant|num_assistant_tokens|prompt_lookup|max_matching_ngram|is_assistant|target_lookbehind)/,
  ],
};

/**
 * Ids that end a text, of `eos_token_id`: an id, a list of ids, or null. -1, as some files write it, is none.
 * @param limit ids are below it @throws DUltraError BAD_CHECKPOINT naming what was expected and what came
 */
export function readEndIds(value: unknown, file: string, limit: number): number[] {
  if (value === undefined || value === null) return [];
  const ids: unknown[] = Array.isArray(value) ? value : [value];
  for (const id of ids)
    if (!Number.isSafeInteger(id) || (id as number) < -1 || (id as number) >= limit)
      throw badFile(
        file,
        `eos_token_id: expected an id below ${limit}, a list of such ids, or -1 for none, got ${show(value)}`,
      );
  return [...new Set(ids as number[])].filter((id) => id >= 0);
}

/**
 * Texts that end a completion, of `stop_strings`: a text or a list of them; [] where it names none.
 * @throws DUltraError BAD_CHECKPOINT naming what was expected and what came
 */
export function readStopStrings({ file, json }: GenerationFile): string[] {
  const value = json[STOP_STRINGS];
  if (isEmpty(value)) return [];
  const texts: unknown[] = Array.isArray(value) ? value : [value];
  if (!texts.every((text) => typeof text === 'string' && text !== ''))
    throw badFile(file, `${STOP_STRINGS}: expected a text or a list of texts, none of them empty, got ${show(value)}`);
  return texts as string[];
}

/** A folder's generation_config.json. */
export interface GenerationFile {
  /** Its path. */
  file: string;
  /** Its fields; {} where there is no such file. */
  json: Record<string, unknown>;
}

const warned = new Set<string>();

/** Settings that choose other tokens in transformers, and that nothing applies here. */
const unapplied = (json: Readonly<Record<string, unknown>>, keys: readonly string[]): string[] =>
  keys.filter((key) => !isEmpty(json[key]) && json[key] !== false && !NOT_APPLIED[key]?.includes(json[key]));

/**
 * Reads a folder's generation_config.json. Once per file and process, a warning names the settings in it (and keys that
 * are not known) that choose other tokens in transformers and that nothing applies here; without the file, those in
 * config.json.
 * @throws DUltraError BAD_CHECKPOINT where it is no JSON object
 */
export async function readGenerationFile(
  folder: string,
  config: { file: string; json: Readonly<Record<string, unknown>> },
): Promise<GenerationFile> {
  const file = path.join(folder, 'generation_config.json');
  const isThere = existsSync(file);
  const json = isThere ? await readJsonObject(file) : {};
  const said = isThere ? { file, json } : config;
  // They are looked for in texts, which a folder without a tokenizer has none of.
  const stops = isThere && existsSync(path.join(folder, 'tokenizer.json'));
  const ignored = unapplied(said.json, [...Object.keys(NOT_APPLIED), ...(stops ? [] : [STOP_STRINGS])]);
  if (isThere) ignored.push(...checkKeyTable(json, file, TABLE));
  if (ignored.length > 0 && !warned.has(said.file)) {
    warned.add(said.file);
    const settings = ignored.map((key) => `${showKey(key)} (${show(said.json[key])})`).join(', ');
    process.emitWarning(`${said.file}: not applied: ${settings}`, {
      type: 'DultraWarning',
      code: 'DULTRA_NOT_APPLIED',
    });
  }
  return { file, json };
}

/** The part of a config that generation_config.json decides. */
export interface TextEnds {
  eosTokenIds: readonly number[];
  embeddingSize: number;
}

/**
 * A model's ends of a text with those of generation_config.json in their place, where it names some, or says -1 for
 * none: transformers lets this file decide.
 * @throws DUltraError BAD_CHECKPOINT as {@link readEndIds}
 */
export function withEndsOf<Config extends TextEnds>(config: Config, { file, json }: GenerationFile): Config {
  if (isEmpty(json.eos_token_id)) return config;
  return { ...config, eosTokenIds: readEndIds(json.eos_token_id, file, config.embeddingSize) };
}
