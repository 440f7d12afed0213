// Shared by the tests: fixture models and variations of them.
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

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

/** A copy of a golden model with its config and tensors changed. */
export function variant(
  name: string,
  change: { config?: (config: Record<string, unknown>) => void; tensors?: (tensors: Record<string, FixtureTensor>) => void },
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
