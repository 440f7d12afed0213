// Values as parts of messages.

/** The message of what was thrown. */
export const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** A number of bytes, as in "1.5 GiB". */
export const formatGiB = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

const MAX_SHOWN = 80;

/** A hostile value for a message: neither long, nor so deep that JSON.stringify overflows the stack. */
export function show(value: unknown): string {
  const isFlat =
    Array.isArray(value) && value.length <= 8 && value.every((item) => typeof item !== 'object' || item === null);
  if (typeof value === 'object' && value !== null && !isFlat)
    return Array.isArray(value) ? `an array of ${value.length}` : 'an object';
  const text = JSON.stringify(value) ?? String(value);
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text;
}
