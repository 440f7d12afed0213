// Records of a user's own data, in the shapes that such data usually has, as prompts with answers.

/** Digits that a number in JSON may have and still be what was written. */
const EXACT_DIGITS = 15;

/** The text of a number. @throws Error where it may not be the number that the file has, since JSON's are not exact */
export function numberText(value: number): string {
  const text = String(value);
  const digits = text.replace(/e.*/, '').replace(/\D/g, '').replace(/^0+/, '').length;
  if (Number.isSafeInteger(value) || (digits <= EXACT_DIGITS && Number.isFinite(value))) return text;
  throw new Error(`expected text for a number of more than ${EXACT_DIGITS} digits`);
}
