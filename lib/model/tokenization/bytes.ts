// Bytes as the characters that byte-level tokenizers write them as: printable ones as themselves, others from U+0100.
const isPrintable = (byte: number) =>
  (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);

let next = 256;
const characterOfByte: readonly string[] = Array.from({ length: 256 }, (_, byte) =>
  String.fromCodePoint(isPrintable(byte) ? byte : next++),
);
const byteOfCharacter: ReadonlyMap<string, number> = new Map(
  characterOfByte.map((character, byte) => [character, byte]),
);

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
const strictDecoder = new TextDecoder('utf-8', { ignoreBOM: true, fatal: true });

/** Whether a text is the character of a byte. */
export const isByteCharacter = (text: string): boolean => byteOfCharacter.has(text);

/** A text's bytes, each as its character. */
export function toByteCharacters(text: string): string {
  let result = '';
  for (const byte of encoder.encode(text)) result += characterOfByte[byte];
  return result;
}
/** The bytes that a token stands for; its own where one of its characters stands for none. */
export function bytesOfToken(token: string): Iterable<number> {
  const bytes: number[] = [];
  for (const character of token) {
    const byte = byteOfCharacter.get(character);
    if (byte === undefined) return encoder.encode(token);
    bytes.push(byte);
  }
  return bytes;
}
export const bytesOfText = (text: string): Uint8Array => encoder.encode(text);
/** Text of bytes, U+FFFD for each part that is no UTF-8. */
export const textOfBytes = (bytes: readonly number[]): string => decoder.decode(Uint8Array.from(bytes));
/** Text of bytes, null where they are no UTF-8. */
export function exactTextOfBytes(bytes: readonly number[]): string | null {
  try {
    return strictDecoder.decode(Uint8Array.from(bytes));
  } catch {
    return null;
  }
}
