// Templates as text: masks that are written without knowing the mask token's text.
import { optionError } from '../errors';
import { encodeText, maskName, type Vocabulary } from '../model/prompt';
import { show } from '../text';

/** An alias for masks, behind backslashes that escape it: [MASK], or {{8}} for eight of them. */
const ALIAS = /(\\*)(\[MASK\]|\{\{ *(\d+) *\}\})/g;

/** What templates need of a model. */
export interface TemplateVocabulary extends Vocabulary {
  config: { embeddingSize: number; maskTokenId: number; maxSequenceLength: number };
}

/** Ids of a template's text. @param atMost as of the tokenizer @throws RangeError; DUltraError NO_TOKENIZER */
export function templateIds(model: TemplateVocabulary, template: string, atMost?: number): Int32Array {
  const { maskTokenId, maxSequenceLength } = model.config;
  const maskToken = model.tokenizer?.maskToken ?? null;
  let masks = 0;
  const text = template.replace(ALIAS, (_, slashes: string, alias: string, digits: string | undefined) => {
    const kept = '\\'.repeat(slashes.length >> 1);
    if (slashes.length % 2 === 1) {
      if (alias !== maskToken) return kept + alias;
      throw optionError(
        RangeError,
        'template',
        `${alias} is the model's own mask token and cannot be written as text; give the template as ids`,
      );
    }
    const count = digits === undefined ? 1 : Number(digits);
    masks += count;
    if (count < 1 || masks > maxSequenceLength)
      throw optionError(RangeError, 'template', `expected 1 to ${maxSequenceLength} masks, got ${show(alias)}`);
    return kept + (maskToken ?? '').repeat(count);
  });
  const ids = encodeText(text, 'template', model, { splitSpecialTokens: false, atMost });
  if (ids.filter((id) => id === maskTokenId).length < masks)
    throw optionError(
      RangeError,
      'template',
      `the tokenizer does not read ${maskName(model)} from text; give the template as ids`,
    );
  return ids;
}
