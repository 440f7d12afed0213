// The dependency rule: calls go down the picture of CONTRIBUTING.md, imports and includes too.
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

const root = path.resolve(__dirname, '..');

function files(directory: string, extensions: RegExp): string[] {
  return readdirSync(path.join(root, directory), { recursive: true })
    .map((file) => path.posix.join(directory, String(file).split(path.sep).join('/')))
    .filter((file) => extensions.test(file));
}

/** Files that `file` imports or includes from this project, as paths from the root (TypeScript without extension). */
function dependencies(file: string): string[] {
  const text = readFileSync(path.join(root, file), 'utf8');
  if (/\.ts$/.test(file)) {
    const found = [...text.matchAll(/(?:from|import|require\()\s*['"](\.[^'"]*)['"]/g)].map((match) => match[1]);
    return found.map((name) => path.posix.join(path.posix.dirname(file), name));
  }
  return [...text.matchAll(/^#include "([^"]+)"/gm)].map((match) => `native/${match[1]}`);
}

const violations = (list: string[], allowed: (file: string, target: string) => boolean) =>
  list.flatMap((file) =>
    dependencies(file)
      .filter((target) => !allowed(file, target))
      .map((target) => `${file} -> ${target}`),
  );

describe('TypeScript', () => {
  // Each layer may use itself, those below it, and the shared leaves.
  const layers = [
    'lib/native',
    'lib/files',
    'lib/hub',
    'lib/model',
    'lib/sampling',
    'lib/decisions',
    'lib/structured',
    'lib/generation',
    'lib/grading',
    'lib/data',
    'lib/rewards',
    'lib/distributed',
    'lib/training',
    'lib/evaluation',
    'lib/index',
    'lib/server',
    'lib/ai-sdk',
    'lib/cli',
  ];
  const leaves = [
    'lib/errors',
    'lib/bundled',
    'lib/package',
    'lib/types',
    'lib/options',
    'lib/random',
    'lib/text',
    'lib/process',
    'lib/packing',
    'lib/statistics',
    'lib/dtypes',
  ];
  const layerOf = (file: string) =>
    layers.findIndex((layer) => file === layer || file.startsWith(`${layer}/`) || file === `${layer}.ts`);

  test('imports go down', () => {
    const list = files('lib', /\.ts$/);
    expect(list.length).toBeGreaterThan(8);
    const bad = violations(list, (file, target) => {
      if (leaves.includes(target)) return true;
      // index.ts and the thin wrappers beside it stand above everything but the command line.
      const from = layerOf(file) < 0 ? layers.indexOf('lib/index') : layerOf(file);
      const to =
        layerOf(target) < 0 ? (target.endsWith('package.json') ? -1 : layers.indexOf('lib/index')) : layerOf(target);
      return to <= from;
    });
    expect(bad).toEqual([]);
  });

  test('a model knows nothing of how it is sampled', () => {
    const upward = violations(
      files('lib/model', /\.ts$/),
      (_file, target) => !/^lib\/(sampling|generation)/.test(target),
    );
    expect(upward).toEqual([]);
  });

  test('only lib/native/addon.ts opens the addon', () => {
    const openers = files('lib', /\.ts$/).filter((file) =>
      /node-gyp-build|\.node['"]/.test(readFileSync(path.join(root, file), 'utf8').replace(/\/\/.*/g, '')),
    );
    expect(openers).toEqual(['lib/native/addon.ts']);
  });

  test('the command line uses only what index.ts and server export', () => {
    const bad = violations(
      files('lib/cli', /\.ts$/),
      (_file, target) =>
        target === 'lib/index' ||
        target === 'lib/server' ||
        target.startsWith('lib/cli/') ||
        target.endsWith('package.json'),
    );
    expect(bad).toEqual([]);
  });
});

describe('C++', () => {
  const list = files('native', /\.(cc|h|inl|cu)$/).filter((file) => !file.startsWith('native/test/'));
  const folder = (file: string) => file.split('/').slice(1, -1).join('/');

  test('includes go down', () => {
    expect(list.length).toBeGreaterThan(15);
    const below: Record<string, RegExp> = {
      addon: /^(addon|distributed|model|ops|backends$)/,
      distributed: /^(distributed|ops|platform)/,
      model: /^(model|ops|platform)/,
      ops: /^ops/,
      platform: /^platform/,
      backends: /^(backends|ops)/,
      'backends/cpu': /^(backends\/cpu|ops|platform)/,
      'backends/cuda': /^(backends\/cuda|backends$|ops)/,
      'backends/cpu/isa': /^(backends\/cpu|ops)/,
    };
    const bad = violations(list, (file, target) => below[folder(file)]?.test(folder(target)) ?? false);
    expect(bad).toEqual([]);
  });

  test('napi.h only in addon/, a concrete backend only in open_backend.cc, the system only in platform/', () => {
    const holding = (pattern: RegExp) =>
      list.filter((file) => pattern.test(readFileSync(path.join(root, file), 'utf8')));
    expect(holding(/#include <napi\.h>/).every((file) => file.startsWith('native/addon/'))).toBe(true);
    const naming = holding(/#include "backends\/cpu\/cpu_backend\.h"/).filter(
      (file) => !file.startsWith('native/backends/cpu/'),
    );
    expect(naming).toEqual(['native/backends/open_backend.cc']);
    // What only some systems have; the CUDA plugin, and what opens it, are for Linux.
    const systems = /#include <(windows|malloc|unistd|fcntl|dlfcn|cpuid|sys\/\w+)\.h>/;
    const asking = holding(systems).filter((file) => !/^native\/(platform|backends\/cuda)\//.test(file));
    expect(asking).toEqual(['native/backends/open_backend.cc']);
    // The plugin is opened at run time: nothing else knows of CUDA.
    const cuda = holding(/#include (<cuda|"backends\/cuda\/)/).filter(
      (file) => !file.startsWith('native/backends/cuda/'),
    );
    expect(cuda).toEqual([]);
  });
});
