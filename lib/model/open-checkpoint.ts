// A checkpoint's headers: of a folder in the Hugging Face layout, or of a GGUF file, read the same way.
import path from 'node:path';
import { readSafetensorsEntries, type TensorEntry } from '../files/safetensors';
import { findSafetensors } from '../files/weight-files';
import type { NativeModelConfig } from '../native';
import { readConfigJson } from './config';
import { hintsOf } from './config-hints';
import type { ConfigHints, ParsedCheckpoint } from './families';
import { type GenerationFile, readGenerationFile } from './generation-file';
import { ggufName, ggufPlacesOf, isGgufPath, openGguf, tokenizerSource } from './gguf';
import { gptqConfigOf, joinGptq } from './gptq';
import type { TokenizerSource } from './load-tokenizer';
import { isQuantised, joinScales, withoutQuantisation } from './quantised-folder';

/** What is known of a checkpoint before its weights are read. */
export interface OpenedCheckpoint {
  /** The folder, or the GGUF file. */
  folder: string;
  /** What says so, for messages. */
  file: string;
  /** As a config.json of the family. */
  json: Record<string, unknown>;
  hints: ConfigHints;
  /** Files with weights, and what is in them. */
  weights: string[];
  entries: Map<string, TensorEntry>;
  /** The config with what the files say beside `json`, and the names of tensors in these files. */
  named<Config extends NativeModelConfig>(parsed: ParsedCheckpoint<Config>): ParsedCheckpoint<Config>;
  generation(): Promise<GenerationFile>;
  tokenizer(): TokenizerSource;
}

type Hints = { maskTokenId?: number | undefined; blockLength?: number | undefined };

async function openFolder(folder: string, options: Hints): Promise<OpenedCheckpoint> {
  const { file, json: written } = await readConfigJson(folder);
  const weights = await findSafetensors(folder);
  const stored = await readSafetensorsEntries(weights);
  const gptq = await gptqConfigOf(folder, written, file);
  const { json, entries } = gptq
    ? { json: withoutQuantisation(written), entries: joinGptq(stored, gptq) }
    : isQuantised(written)
      ? { json: withoutQuantisation(written), entries: joinScales(stored, written, file) }
      : { json: written, entries: stored };
  return {
    folder,
    file,
    json,
    hints: await hintsOf(folder, json, options),
    weights,
    entries,
    named: (parsed) => parsed,
    generation: () => readGenerationFile(folder, { file, json }),
    tokenizer: () => folder,
  };
}

async function openFile(file: string, { maskTokenId }: Hints): Promise<OpenedCheckpoint> {
  const opened = await openGguf(file);
  const json = { ...opened.json };
  // LLaDA's config.json names the mask token in any case.
  if (opened.maskTokenId === null && maskTokenId !== undefined) json.mask_token_id = maskTokenId;
  return {
    folder: file,
    file,
    json,
    hints: {},
    weights: opened.files,
    entries: opened.entries,
    named: ({ config }) => ({
      config: {
        ...config,
        ...(opened.shiftLogits !== (config.shiftLogits ?? false) && { shiftLogits: opened.shiftLogits }),
      },
      checkpointName: ggufName,
      placesOf: (tensor) => ggufPlacesOf(tensor, config),
    }),
    generation: async () => ({ file, json: {} }),
    tokenizer() {
      const source = tokenizerSource(opened);
      return source === null || typeof source === 'string' ? source : { file, ...source };
    },
  };
}

/** Reads the headers of a checkpoint's files. @throws DUltraError BAD_CHECKPOINT */
export const openCheckpoint = (source: string, options: Hints = {}): Promise<OpenedCheckpoint> =>
  isGgufPath(source) ? openFile(path.resolve(source), options) : openFolder(source, options);
