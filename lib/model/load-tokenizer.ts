// The files of a checkpoint's tokenizer.
import { existsSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { badFile, readJsonObject, readTextFile } from '../files/json';
import { reasonOf, show } from '../text';
import type { TokenizerConfig } from './tokenization/config';
import { type ChatTemplate, checkTokenIds, Tokenizer } from './tokenizer';

const ADDITIONAL = 'additional_chat_templates';

/** One of several templates by their names: "default", as transformers takes it. */
function defaultOf(templates: ReadonlyMap<string, string>): ChatTemplate {
  const names = Array.from(templates.keys()).sort();
  return (
    templates.get('default') ?? new Error(`of several chat templates (${names.join(', ')}) none is named "default"`)
  );
}

/** `chat_template` of tokenizer_config.json: a text, or a list of named ones. */
function templateIn(value: unknown): ChatTemplate {
  if (value === undefined || value === null || typeof value === 'string') return value ?? null;
  if (!Array.isArray(value)) return new Error(`chat_template: expected a text or a list, got ${show(value)}`);
  const templates = new Map<string, string>();
  for (const entry of value) {
    if (typeof entry?.name !== 'string' || typeof entry?.template !== 'string')
      return new Error('chat_template: expected { name, template }, both texts, in a list');
    templates.set(entry.name, entry.template);
  }
  return templates.size === 0 ? null : defaultOf(templates);
}

/** The template of a folder: its files go before tokenizer_config.json, and that before chat_template.json. */
async function readTemplate(folder: string, config: TokenizerConfig): Promise<ChatTemplate> {
  const templates = new Map<string, string>();
  const file = path.join(folder, 'chat_template.jinja');
  if (existsSync(file)) templates.set('default', await readTextFile(file));
  const more = path.join(folder, ADDITIONAL);
  if (existsSync(more))
    for (const name of await readdir(more))
      if (name.endsWith('.jinja'))
        templates.set(name.slice(0, -'.jinja'.length), await readTextFile(path.join(more, name)));
  if (templates.size > 0) return defaultOf(templates);
  const template = templateIn(config.chat_template);
  const json = path.join(folder, 'chat_template.json');
  if (template !== null || !existsSync(json)) return template;
  return templateIn((await readJsonObject(json)).chat_template);
}

/** tokenizer_config.json with what older checkpoints have beside it. @param tokenizer parsed tokenizer.json */
async function readConfig(folder: string, tokenizer: Record<string, unknown>): Promise<TokenizerConfig> {
  const readOptional = async (name: string): Promise<Record<string, unknown>> => {
    const file = path.join(folder, name);
    return existsSync(file) ? await readJsonObject(file) : {};
  };
  const config = await readOptional('tokenizer_config.json');
  // As transformers: these files count where the config does not list its tokens.
  if (config.added_tokens_decoder !== undefined) return config;
  const merged: Record<string, unknown> = { ...config, ...(await readOptional('special_tokens_map.json')) };
  const tokens = Object.entries(merged).filter(([key]) => /_tokens?$/.test(key));
  const special = new Set(tokens.flatMap(([, value]) => contentsOf(value)));
  const known = new Set(contentsOf(tokenizer.added_tokens));
  const added = Object.entries(await readOptional('added_tokens.json')).filter(([content]) => !known.has(content));
  const listed = added.map(([content, id]) => {
    const isSpecial = special.has(content);
    return [String(id), { content, normalized: !isSpecial, special: isSpecial }];
  });
  return listed.length === 0 ? merged : { ...merged, added_tokens_decoder: Object.fromEntries(listed) };
}
function contentsOf(value: unknown): string[] {
  if (typeof value === 'string') return [value];
  if (Array.isArray(value)) return value.flatMap(contentsOf);
  const content = (value as { content?: unknown } | null)?.content;
  return typeof content === 'string' ? [content] : [];
}

/** Where a tokenizer is: in the files of a folder; as what these would hold, of a file that is named; null: nowhere. */
export type TokenizerSource = string | { file: string; tokenizer: object; config: TokenizerConfig } | null;

/**
 * The tokenizer of a checkpoint; null where a folder has no tokenizer.json. @param limit rows of the model's tables
 * @throws DUltraError BAD_CHECKPOINT
 */
export async function loadTokenizer(
  source: TokenizerSource,
  maskTokenId: number,
  limit: number,
): Promise<Tokenizer | null> {
  if (source === null) return null;
  if (typeof source === 'string') return loadFrom(source, maskTokenId, limit);
  const { file, tokenizer, config } = source;
  return tokenizerOf(file, tokenizer, config, templateIn(config.chat_template), maskTokenId, limit, file);
}

function tokenizerOf(
  file: string,
  tokenizer: object,
  config: TokenizerConfig,
  template: ChatTemplate,
  maskTokenId: number,
  limit: number,
  source: string,
): Tokenizer {
  try {
    checkTokenIds(tokenizer, limit);
    return new Tokenizer(tokenizer, config, template, maskTokenId, source);
  } catch (cause) {
    throw badFile(file, reasonOf(cause), cause);
  }
}

async function loadFrom(folder: string, maskTokenId: number, limit: number): Promise<Tokenizer | null> {
  const file = path.join(folder, 'tokenizer.json');
  if (!existsSync(file)) return null;
  const tokenizer = await readJsonObject(file);
  const config = await readConfig(folder, tokenizer);
  const template = await readTemplate(folder, config);
  return tokenizerOf(file, tokenizer, config, template, maskTokenId, limit, folder);
}
