// Shared by the tests: fixture models and variations of them.
import { copyFileSync, cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { characterTokenizer } from './tokenizers';

export interface FixtureTensor {
  dtype: string;
  shape: number[];
  data: Float32Array | Float64Array | Int32Array | Uint8Array;
  raw: Buffer;
}

const { readTensors, writeTensors } = require('./golden/safetensors.cjs') as {
  readTensors(file: string): Record<string, FixtureTensor>;
  writeTensors(file: string, tensors: Record<string, FixtureTensor>): void;
};

export { readTensors, writeTensors };

/** `test`, but on Windows skipped, with the reason in its name. */
export const exceptOnWindows =
  (why: string) =>
  (name: string, body: () => unknown, timeout?: number): void => {
    if (process.platform === 'win32') test.skip(`${name} (skipped: ${why})`, () => {});
    else test(name, body as () => Promise<void>, timeout);
  };

/** Folder of a golden model. */
export const modelFolder = (name: string) => path.join(__dirname, 'fixtures', 'golden', 'models', name);

const temporary: string[] = [];

/** A fresh folder, removed after the test file. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dultra-test-'));
  temporary.push(folder);
  return folder;
}

afterAll(() => {
  for (const folder of temporary.splice(0)) rmSync(folder, { recursive: true, force: true });
});

/** Runs `body` with another working directory. */
export async function inFolder(folder: string, body: () => Promise<unknown>): Promise<void> {
  const before = process.cwd();
  process.chdir(folder);
  try {
    await body();
  } finally {
    process.chdir(before);
  }
}

/** A copy of a golden model with its config and tensors changed. */
export function variant(
  name: string,
  change: {
    config?: (config: Record<string, unknown>) => void;
    tensors?: (tensors: Record<string, FixtureTensor>) => void;
  },
): string {
  const folder = temporaryFolder();
  const from = modelFolder(name);
  const config = JSON.parse(readFileSync(path.join(from, 'config.json'), 'utf8'));
  change.config?.(config);
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config));
  if (change.tensors) {
    const tensors = readTensors(path.join(from, 'model.safetensors'));
    change.tensors(tensors);
    writeTensors(path.join(folder, 'model.safetensors'), tensors);
  } else {
    copyFileSync(path.join(from, 'model.safetensors'), path.join(folder, 'model.safetensors'));
  }
  return folder;
}

/** A golden model without its planner head. */
export const withoutPlanner = (name: string) =>
  variant(name, {
    tensors: (tensors) => {
      for (const key of Object.keys(tensors)) if (!key.startsWith('model.')) delete tensors[key];
    },
  });

/**
 * The golden model "base" (97 ids) with a tokenizer whose ids 0 to 94 are the printable ASCII characters, a chat
 * template that renders "role:content;" per message, and room for longer rows where `maxSequenceLength` says so.
 */
export function withTokenizer(maxSequenceLength?: number): string {
  const folder = temporaryFolder();
  cpSync(modelFolder('base'), folder, { recursive: true });
  const vocab: Record<string, number> = { '<eos>': 95, '<mask>': 96 };
  for (let i = 0; i < 95; i++) vocab[String.fromCharCode(32 + i)] = i;
  const tokenizer = characterTokenizer(vocab, ['<eos>', '<mask>']);
  writeFileSync(path.join(folder, 'tokenizer.json'), JSON.stringify(tokenizer));
  const template = '{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}';
  const config = { eos_token: '<eos>', mask_token: '<mask>', chat_template: template };
  writeFileSync(path.join(folder, 'tokenizer_config.json'), JSON.stringify(config));
  if (maxSequenceLength !== undefined) {
    const file = path.join(folder, 'config.json');
    writeFileSync(
      file,
      JSON.stringify({ ...JSON.parse(readFileSync(file, 'utf8')), max_sequence_length: maxSequenceLength }),
    );
  }
  return folder;
}
