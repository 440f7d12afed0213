// TensorBoard event files: length-prefixed records with masked CRC-32C, each a small protocol buffer with one scalar
// per metric.
import { type FileHandle, open } from 'node:fs/promises';

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let bit = 0; bit < 8; bit++) c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1;
  return c >>> 0;
});

/** CRC-32C (Castagnoli). */
export function crc32c(bytes: Uint8Array): number {
  let c = 0xffffffff;
  for (const byte of bytes) c = CRC_TABLE[(c ^ byte) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

/** The format stores checksums rotated and shifted, so that a checksum of checksums stays useful. */
function maskedCrc(bytes: Uint8Array): Buffer {
  const crc = crc32c(bytes);
  const out = Buffer.alloc(4);
  out.writeUInt32LE((((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0);
  return out;
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return Buffer.from([...bytes, rest]);
    bytes.push((rest % 128) | 128);
  }
}

/** A protocol-buffer field: number, wire type (0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes), content. */
const field = (number: number, wire: number, content: Buffer) =>
  Buffer.concat([varint(number * 8 + wire), ...(wire === 2 ? [varint(content.length)] : []), content]);

function float64(value: number): Buffer {
  const out = Buffer.alloc(8);
  out.writeDoubleLE(value);
  return out;
}

function record(event: Buffer): Buffer {
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(event.length));
  return Buffer.concat([length, maskedCrc(length), event, maskedCrc(event)]);
}

/** One event with a scalar per metric. @param time seconds since 1970 */
export function scalarEvent(step: number, time: number, scalars: Readonly<Record<string, number>>): Buffer {
  const values = Object.entries(scalars).map(([tag, value]) => {
    const simple = Buffer.alloc(4);
    simple.writeFloatLE(value);
    return field(1, 2, Buffer.concat([field(1, 2, Buffer.from(tag)), field(2, 5, simple)]));
  });
  return record(
    Buffer.concat([field(1, 1, float64(time)), field(2, 0, varint(step)), field(5, 2, Buffer.concat(values))]),
  );
}

/** Tags that are not made by {@link tagOf}'s rules, of trl's groups; null: no series. */
const TAGS: Readonly<Record<string, string | null>> = {
  maxSteps: null,
  seconds: null,
  tokens: 'speed/tokens',
  tokensPerSecond: 'speed/tokens_per_second',
  accuracy: 'completions/accuracy',
  nfe: 'completions/forward_passes',
  evalNfe: 'eval/forward_passes',
  tokensPerForward: 'completions/tokens_per_forward',
  forcedSteps: 'completions/forced_steps',
  clippedLow: 'clip_ratio/low',
  clippedHigh: 'clip_ratio/high',
};

/**
 * The tag of a metric in TensorBoard, in groups and names like trl's: "gradNorm" is "train/grad_norm", "evalLoss"
 * "eval/loss", "reward/short" "rewards/short/mean". null: it is no series.
 */
export function tagOf(name: string): string | null {
  if (Object.hasOwn(TAGS, name)) return TAGS[name];
  const [first, ...rest] = name.split('/');
  if (first === 'reward' && rest.length > 0) return `rewards/${rest.join('/')}/mean`;
  const [group, metric] = /^eval[A-Z]/.test(first) ? ['eval', first.slice(4)] : ['train', first];
  const snake = metric.replace(/[A-Z]/g, (letter, at) => `${at > 0 ? '_' : ''}${letter.toLowerCase()}`);
  return [group, snake, ...rest].join('/');
}

/** Appends events to a file. */
export class EventWriter {
  readonly #handle: FileHandle;

  private constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  /** Makes a new file, replacing one of that name. */
  static async create(file: string, time: number): Promise<EventWriter> {
    const writer = new EventWriter(await open(file, 'w'));
    const version = field(3, 2, Buffer.from('brain.Event:2'));
    await writer.#handle.writeFile(record(Buffer.concat([field(1, 1, float64(time)), version])));
    return writer;
  }

  async write(step: number, time: number, scalars: Readonly<Record<string, number>>): Promise<void> {
    await this.#handle.writeFile(scalarEvent(step, time, scalars));
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }
}
