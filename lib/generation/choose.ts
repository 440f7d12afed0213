// A decision between given answers: how probable each of them is.
import { indexOfMost, softmax } from '../decisions/probability';
import { checkLength, scoreSlots, slotRows } from '../decisions/rows';
import { DUltraError, optionError } from '../errors';
import { encodePrompt, maskName } from '../model/prompt';
import { checkList } from '../options';
import { show } from '../text';
import type { PlainPrompt } from '../types';
import type { GeneratingModel } from './prepare';

/** What {@link MaskedDiffusionModel.choose} found. */
export interface Choice {
  /** The most probable option; the first among equals. */
  option: string;
  /** Its index. */
  index: number;
  /** Probability of each option (K), given that the answer is one of them; they add up to 1. */
  probabilities: number[];
  /** Log-probability of each option's tokens (K), not yet normalised over the options. */
  logProbs: number[];
}

/** The options as tokens. @throws TypeError, RangeError; DUltraError NO_TOKENIZER */
function encodeOptions(model: GeneratingModel, options: readonly string[]): number[][] {
  const { tokenizer, source } = model;
  if (!tokenizer) throw new DUltraError('NO_TOKENIZER', `${source} has no tokenizer.json, which options of text need`);
  const encoded = checkList('options', options, (name, option) => {
    if (typeof option !== 'string') throw optionError(TypeError, name, `expected a string, got ${String(option)}`);
    const ids = tokenizer.encode(option, { addSpecialTokens: false });
    if (ids.length === 0) throw optionError(RangeError, name, 'expected a text of at least one token, got ""');
    if (ids.includes(model.config.maskTokenId))
      throw optionError(RangeError, name, `expected no mask token, ${maskName(model)}, got ${show(option)}`);
    return ids;
  });
  if (encoded.length < 2)
    throw optionError(RangeError, 'options', `expected at least two texts, got ${encoded.length}`);
  const texts = encoded.map((ids) => ids.join());
  texts.forEach((text, i) => {
    if (texts.indexOf(text) < i)
      throw optionError(
        RangeError,
        `options[${i}]`,
        `expected a text unlike the others, got ${JSON.stringify(options[i])} again`,
      );
  });
  return encoded;
}

/** See `model.choose`. */
export async function choose(model: GeneratingModel, prompt: PlainPrompt, options: readonly string[]): Promise<Choice> {
  const encoded = encodeOptions(model, options);
  const promptIds = encodePrompt(prompt, model);
  const rows = slotRows(model.config, { promptIds, before: [], after: [], options: encoded, joint: false });
  checkLength(rows, model.config, 'prompt', 'prompt and option');
  const [logProbs] = await scoreSlots(model, [rows]);
  const index = indexOfMost(logProbs);
  return { option: options[index], index, probabilities: softmax(logProbs, 1), logProbs };
}
