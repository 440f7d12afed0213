// What the caller and the tokenizer's files say of a checkpoint that its config.json may not.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { isIndex, readJsonObject } from '../files/json';
import { type ConfigHints, isDiffusion } from './families';

/** A token as files of transformers write it: its text, or an object with it. */
const textOf = (token: unknown): string | null => {
  const content = typeof token === 'object' && token !== null ? (token as { content?: unknown }).content : token;
  return typeof content === 'string' && content !== '' ? content : null;
};

const objectOf = async (folder: string, name: string): Promise<Record<string, unknown>> => {
  const file = path.join(folder, name);
  return existsSync(file) ? readJsonObject(file) : {};
};

/** The id of a token's text among the added tokens of a folder's files, or null. */
async function idOfAdded(folder: string, config: Record<string, unknown>, text: string): Promise<number | null> {
  for (const [id, token] of Object.entries((config.added_tokens_decoder as object | undefined) ?? {}))
    if (textOf(token) === text && isIndex(Number(id))) return Number(id);
  const { added_tokens: added } = await objectOf(folder, 'tokenizer.json');
  for (const token of Array.isArray(added) ? (added as { id?: unknown }[]) : [])
    if (textOf(token) === text && isIndex(token?.id)) return token.id;
  const id = (await objectOf(folder, 'added_tokens.json'))[text];
  return isIndex(id) ? id : null;
}

/**
 * The id of `mask_token` in tokenizer_config.json or special_tokens_map.json; null: they name none.
 * @throws DUltraError BAD_CHECKPOINT for files that are no JSON objects
 */
async function readTokenizerMaskId(folder: string): Promise<number | null> {
  const config = await objectOf(folder, 'tokenizer_config.json');
  const text = textOf(config.mask_token) ?? textOf((await objectOf(folder, 'special_tokens_map.json')).mask_token);
  return text === null ? null : idOfAdded(folder, config, text);
}

/**
 * What the caller and the tokenizer's files say that config.json may not. The files are read only for what is missing.
 * @throws DUltraError BAD_CHECKPOINT
 */
export async function hintsOf(
  folder: string,
  json: Readonly<Record<string, unknown>>,
  { maskTokenId, blockLength }: { maskTokenId?: number; blockLength?: number },
): Promise<ConfigHints> {
  const isNamed = maskTokenId !== undefined || isIndex(json.mask_token_id) || !isDiffusion(json);
  return { maskTokenId, blockLength, tokenizerMaskId: isNamed ? null : await readTokenizerMaskId(folder) };
}
