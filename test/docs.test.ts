// What README.md and the pages in docs/ show, run as it stands: in a folder with a checkpoint "./checkpoint" and the
// package installed.
//   js     run as a module; has to print something, and nothing to standard error
//   bash   lines with "npx dultra" are run; training is cut to a few steps and evaluation to a few prompts
//   yaml   written to the file that its first line names, for the commands of the page
//   text   what something prints, or a picture of letters
//   sh     takes hours: only what it names is looked for
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { transformSync } from '@swc/core';
import { parseSampler, training } from '../lib';
import { temporaryFolder, withTokenizer } from './helpers';

const root = path.resolve(__dirname, '..');
const { scripts } = require('../package.json') as { scripts: Record<string, string> };
const read = (page: string) => readFileSync(path.join(root, page), 'utf8');
const inDocs = readdirSync(path.join(root, 'docs')).filter((file) => file.endsWith('.md'));
const PAGES = ['README.md', 'CONTRIBUTING.md', 'examples/README.md', ...inDocs.map((file) => `docs/${file}`)];

interface Block {
  language: string;
  code: string;
}
const blocksOf = (page: string): Block[] =>
  [...read(page).matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)].map(([, language, code]) => ({ language, code }));
const blocks = (page: string, language: string) =>
  blocksOf(page)
    .filter((block) => block.language === language)
    .map(({ code }) => code);

/**
 * A folder with a checkpoint, the package, and an "npx" that runs it: npm's would ask the registry. What takes minutes
 * is cut short.
 */
function workplace(): string {
  const folder = temporaryFolder();
  renameSync(withTokenizer(512), path.join(folder, 'checkpoint'));
  mkdirSync(path.join(folder, 'node_modules'));
  symlinkSync(root, path.join(folder, 'node_modules', 'dultra'), 'junction');
  const bin = path.join(folder, 'bin');
  mkdirSync(bin);
  const main = path.join(root, 'dist', 'cli', 'main.js');
  const shim = `#!/bin/sh
[ "$1" = dultra ] || exit 99
shift
case "$1 $2" in
  "train --resume"|"train init") ;;
  "train "*) set -- "$@" --max-steps 2 --set evalExamples=8 ;;
  "eval "*) set -- "$@" --count 8 ;;
esac
exec "${process.execPath}" "${main}" "$@"
`;
  writeFileSync(path.join(bin, 'npx'), shim);
  chmodSync(path.join(bin, 'npx'), 0o755);
  return folder;
}

/** Windows has one where Git is. */
const hasShell = spawnSync('sh', ['-c', 'exit 0']).status === 0;

test('README.md shows code before its line 30', () => {
  const lines = read('README.md').split('\n');
  const first = lines.indexOf('```js');
  expect(first).toBeGreaterThan(0);
  expect(lines.indexOf('```', first)).toBeLessThan(30);
});

describe.each(PAGES)('%s', (page) => {
  let folder: string;
  beforeAll(() => {
    folder = workplace();
  });

  test('every block is of a kind that is tested', () => {
    const kinds = blocksOf(page).map(({ language }) => language);
    expect(kinds.filter((language) => !['js', 'bash', 'yaml', 'text', 'sh'].includes(language))).toEqual([]);
    // An odd number of fences would hide a block.
    expect(read(page).match(/^```/gm)?.length ?? 0).toBe(2 * kinds.length);
  });

  const programs = blocks(page, 'js').map((code, i) => [i + 1, code] as const);
  if (programs.length > 0)
    test.each(programs)('JavaScript block %i runs', (i, code) => {
      // Older versions of Node do not know "await using".
      const parser = { syntax: 'ecmascript' as const, explicitResourceManagement: true };
      const lowered = transformSync(code, { jsc: { parser, target: 'es2022' }, module: { type: 'es6' } });
      const file = path.join(folder, `block${i}.mjs`);
      writeFileSync(file, lowered.code);
      const { status, stdout, stderr } = spawnSync(process.execPath, [file], { cwd: folder, encoding: 'utf8' });
      expect(stderr).toBe('');
      expect(status).toBe(0);
      expect(stdout).not.toBe('');
    });

  const files = blocks(page, 'yaml').map((code) => ({ name: /^# (\S+\.yaml)\n/.exec(code)?.[1], code }));
  if (files.length > 0)
    test('configuration files have a name', () => {
      for (const { name, code } of files) writeFileSync(path.join(folder, name!), code);
    });

  const commands = blocks(page, 'bash')
    .flatMap((block) => block.replaceAll('\\\n', ' ').split('\n'))
    .filter((line) => line.includes('npx dultra'));
  if (commands.length > 0)
    (hasShell ? test : test.skip).each(commands)(
      `%s${hasShell ? '' : ' (skipped: there is no sh here)'}`,
      (command) => {
        const env = {
          ...process.env,
          PATH: `${path.join(folder, 'bin')}${path.delimiter}${process.env.PATH}`,
          NO_COLOR: '1',
        };
        const { status, stdout, stderr } = spawnSync('sh', ['-c', command], { cwd: folder, env, encoding: 'utf8' });
        expect(stderr).not.toMatch(/^dultra:/m);
        expect(status).toBe(0);
        if (command.includes('--json')) expect(() => JSON.parse(stdout)).not.toThrow();
        expect(stdout).not.toBe('');
      },
    );

  test('npm scripts and files that it names exist', () => {
    const text = read(page);
    for (const [, name] of text.matchAll(/npm run (?:--silent )?([\w:]+)/g))
      expect(Object.keys(scripts)).toContain(name);
    for (const [, file] of text.matchAll(/\bnode ((?:scripts|examples|bench)\/[\w.-]+)/g))
      expect([file, existsSync(path.join(root, file))]).toEqual([file, true]);
  });

  test('prose: one sentence a line, plain English', () => {
    const prose = read(page)
      .replace(/^ *```[\s\S]*?^ *```$/gm, '')
      .split('\n')
      .filter((line) => !/^(\||#)/.test(line))
      .map((line) => line.replace(/^ *\d+\. /, '').replace(/`[^`]*`/g, '`'));
    // A full stop, then a capital letter: two sentences. Abbreviations of these pages end otherwise.
    expect(prose.filter((line) => /[a-z0-9)\]"*`][.?!]\*{0,2} [A-Z]/.test(line.replace(/\]\([^)]*\)/g, ']')))).toEqual(
      [],
    );
    expect(read(page).match(/\b(but for|of one's own|reckoned|as dear again)\b/gi) ?? []).toEqual([]);
  });

  test('links into the repository lead somewhere', () => {
    for (const [, target] of read(page).matchAll(/\]\((?!https?:)([^)#\s]*)(?:#[^)]*)?\)/g))
      if (target !== '')
        expect([target, existsSync(path.join(root, path.dirname(page), target))]).toEqual([target, true]);
    for (const [, file, heading] of read(page).matchAll(/\]\(([\w./-]*\.md)?#([\w-]+)\)/g)) {
      const text = file === undefined ? read(page) : readFileSync(path.join(root, path.dirname(page), file), 'utf8');
      const anchors = [...text.matchAll(/^#+ (.*)$/gm)].map(([, title]) =>
        title
          .toLowerCase()
          .replace(/[^\w\s-]/g, '')
          .replaceAll(' ', '-'),
      );
      expect([file ?? page, anchors]).toEqual([file ?? page, expect.arrayContaining([heading])]);
    }
  });
});

test('the two columns of the sampler table mean the same', () => {
  const rows = [...read('docs/samplers.md').matchAll(/^\| `\{ (type: .*?) \}` \|.*\| `([^`]+)` \|$/gm)];
  expect(rows.length).toBeGreaterThanOrEqual(7);
  for (const [, object, short] of rows) {
    const json = `{${object.replace(/(\w+):/g, '"$1":').replaceAll("'", '"')}}`;
    expect(parseSampler(short)).toEqual(JSON.parse(json));
  }
});

describe('docs/differences.md', () => {
  const page = read('docs/differences.md');
  const allText = (files: string[]) => files.map(read).join('\n');

  test('the recorded runs that it names are there, and as many as it says', () => {
    const golden = readdirSync(path.join(root, 'test', 'fixtures', 'golden'));
    for (const [, name] of page.matchAll(/`((?:gen|grpo|fastdllm|sft|planner_init)_\w*\*?|adamw_5\w+)`/g))
      expect([
        name,
        golden.some((folder) => (name.endsWith('*') ? folder.startsWith(name.slice(0, -1)) : folder === name)),
      ]).toEqual([name, true]);
    // The folder of rewards is no run.
    const cases = golden.filter(
      (name) => name !== 'rewards' && existsSync(path.join(root, 'test', 'fixtures', 'golden', name, 'case.json')),
    );
    expect(Number(/same: (\d+) of them/.exec(page)![1])).toBe(cases.length);
    for (const other of ['README.md', 'docs/architecture.md'])
      expect(read(other)).toContain(`${cases.length} recorded runs`);
  });

  test('the tests that it names are there', () => {
    const native = allText(
      readdirSync(path.join(root, 'native', 'test'))
        .map((file) => `native/test/${file}`)
        .filter((file) => file.endsWith('.cc')),
    );
    for (const [, name] of page.matchAll(/`((?:unmask|sampling|likelihood|adamw)_(?!test)\w+)`/g))
      if (!name.startsWith('adamw_5'))
        expect([name, new RegExp(`DULTRA_TEST\\(${name}[,)]`).test(native)]).toEqual([name, true]);
    for (const [, file] of page.matchAll(/`(\w+_test\.cc)`/g))
      expect([file, existsSync(path.join(root, 'native', 'test', file))]).toEqual([file, true]);
    const named = [
      ...page.matchAll(/`([\w-]+\.test\.ts)`((?:,? (?:and )?"(?:[^"]|"reference")+?"(?= |;|\.|,|$|\())*)/gm),
    ];
    expect(named.length).toBeGreaterThan(10);
    for (const [, file, titles] of named) {
      const text = read(`test/${file}`);
      for (const [, title] of titles.matchAll(/"((?:[^"]|"reference")+?)"(?= |;|\.|,|$|\()/g))
        expect([title, text.includes(title)]).toEqual([title, true]);
    }
  });
});

describe('pictures', () => {
  const folder = path.join(root, 'docs', 'pictures');
  const files = readdirSync(folder).filter((file) => file.endsWith('.svg'));
  test('every one is shown on a page, with a description', () => {
    const shown = PAGES.flatMap((page) => [
      ...read(page).matchAll(/!\[([^\]]{20,})\]\((?:docs\/)?pictures\/([\w-]+\.svg)\)/g),
    ]);
    expect([...new Set(shown.map(([, , file]) => file))].sort()).toEqual(files.sort());
  });

  // A phone shows a page's picture in about 358 pixels.
  test.each(files)('%s: letters that can be read on a phone, and colours for the dark', (file) => {
    const picture = readFileSync(path.join(folder, file), 'utf8');
    const width = Number(/viewBox="0 0 (\d+) /.exec(picture)![1]);
    const sizes = [...picture.matchAll(/font-size="([\d.]+)"/g)].map(([, size]) => Number(size));
    expect((Math.min(...sizes) * 358) / width).toBeGreaterThanOrEqual(10);
    expect(picture).toContain('@media (prefers-color-scheme:dark)');
    // Every colour of light has its counterpart.
    const dark = picture.slice(picture.indexOf('@media (prefers-color-scheme:dark)'));
    for (const [, name] of picture.matchAll(/class="([fl]-\w+)"/g)) expect(dark).toContain(`.${name}{`);
    for (const [tag] of picture.matchAll(/<[^>]*(?:fill|stroke)="#[^>]*>/g)) expect(tag).toContain('class="');
  });
});

/** A folder with config.json of LLaDA-8B and a file of its tensors, all holes: a plan reads its header alone. */
function shapeOfLlada8b(): string {
  const folder = temporaryFolder();
  const shape = { d_model: 4096, n_heads: 32, n_kv_heads: 32, n_layers: 32, mlp_hidden_size: 12288 };
  const ids = { vocab_size: 126464, embedding_size: 126464, mask_token_id: 126336, eos_token_id: 126081 };
  const rules = {
    block_type: 'llama',
    activation_type: 'silu',
    layer_norm_type: 'rms',
    rope: true,
    rope_theta: 500000,
  };
  const rest = { max_sequence_length: 4096, rms_norm_eps: 1e-5, weight_tying: false };
  const config = { model_type: 'llada', ...shape, ...ids, ...rules, ...rest };
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config));
  const matrices: [string, number, number][] = [
    ['q_proj', 4096, 4096],
    ['k_proj', 4096, 4096],
    ['v_proj', 4096, 4096],
    ['attn_out', 4096, 4096],
    ['ff_proj', 12288, 4096],
    ['up_proj', 12288, 4096],
    ['ff_out', 4096, 12288],
  ];
  const tensors: [string, number[]][] = [
    ['wte', [126464, 4096]],
    ['ff_out', [126464, 4096]],
    ['ln_f', [4096]],
  ];
  for (let i = 0; i < 32; i++) {
    for (const [name, rows, columns] of matrices) tensors.push([`blocks.${i}.${name}`, [rows, columns]]);
    for (const name of ['attn_norm', 'ff_norm']) tensors.push([`blocks.${i}.${name}`, [4096]]);
  }
  let at = 0;
  const header = Object.fromEntries(
    tensors.map(([name, shape]) => {
      const begin = at;
      at += 2 * shape.reduce((product, size) => product * size, 1);
      return [`model.transformer.${name}.weight`, { dtype: 'BF16', shape, data_offsets: [begin, at] }];
    }),
  );
  const text = JSON.stringify(header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const file = path.join(folder, 'model.safetensors');
  writeFileSync(file, Buffer.concat([length, Buffer.from(text)]));
  truncateSync(file, 8 + text.length + at);
  return folder;
}

test('docs/training-on-one-gpu.md: the memory is what the plan says', async () => {
  const model = shapeOfLlada8b();
  const lora = { rank: 16 };
  const less = { activationCheckpointing: true, tokenBudget: 2048 };
  const planned = await Promise.all(
    [
      { lora: { rank: 16, targets: ['q_proj', 'v_proj'] as const }, ...less },
      { lora, ...less },
      { lora, activationCheckpointing: true, tokenBudget: 4096 },
      { lora },
      { ...less, momentDtype: 'bfloat16' as const },
      {},
    ].map((options) => training.planMemory('sft', { model, ...options }, { device: 'cuda' })),
  );
  // GRPO of a planner over 4 bits fits a GPU of 24 GB.
  const targets = ['q_proj', 'k_proj', 'v_proj', 'attn_out', 'ff_proj', 'up_proj', 'ff_out'] as const;
  const rollouts = { planner: 'new', ...less, promptsPerStep: 2, numGenerations: 8, maxTokens: 256 } as const;
  const inFourBits = await Promise.all(
    (
      [
        ['sft', { lora, ...less }],
        ['sft', { lora: { rank: 16, targets }, ...less }],
        ['grpo', { freezeBase: true, ...rollouts }],
        ['grpo', { freezeBase: true, cache: 'dual', ...rollouts }],
        ['grpo', { lora, ...rollouts }],
      ] as const
    ).map(([stage, options]) => training.planMemory(stage, { model, ...options }, { device: 'cuda', quantize: 'q4' })),
  );
  for (const { bytes, items } of inFourBits) {
    expect(bytes).toBeLessThan(20e9);
    expect(items[0].detail).toContain('matrices in blocks of 8 bits and fewer');
  }
  const page = read('docs/training-on-one-gpu.md');
  expect(planned[0].parameters).toBe(8_015_581_184);
  expect(page).toContain('8,015,581,184 parameters');
  const table = [...page.matchAll(/^\|.*\| ([\d.]+) GB \|$/gm)].map(([, size]) => size);
  expect(table).toEqual([...planned, ...inFourBits].map(({ bytes }) => (bytes / 1e9).toFixed(1)));
});

test('docs/api.md names what there is', () => {
  const api = require('../lib') as Record<string, unknown>;
  const { MaskedDiffusionModel, rewards, datasets } = require('../lib') as typeof import('../lib');
  const methods = MaskedDiffusionModel.prototype as unknown as Record<string, unknown>;
  const rows = read('docs/api.md')
    .split('\n')
    .filter((line) => line.startsWith('| ') && line.includes('](') && line.includes('`'));
  expect(rows.length).toBeGreaterThan(10);
  for (const row of rows)
    for (const [, space, name] of row.split('|')[2].matchAll(/`(?:(\w+)\.)?(\w+)`/g)) {
      if (['sampler', 'cache', 'tokenizer'].includes(name)) continue; // options, and a property
      const isThere =
        space === 'model'
          ? name in methods
          : [api, methods, rewards, datasets].some((holder) => Object.hasOwn(holder, name)) || name in methods;
      expect([space, name, isThere]).toEqual([space, name, true]);
    }
});

test('docs/README.md lists every page', () => {
  const listed = [...read('docs/README.md').matchAll(/\]\((\w[\w-]*\.md)\)/g)].map(([, file]) => file);
  expect([...new Set(listed)].sort()).toEqual(inDocs.filter((file) => file !== 'README.md').sort());
});

test('docs/grpo.md explains every metric', () => {
  const keysOf = (file: string, name: string) =>
    [
      ...new RegExp(`export interface ${name}[^{]*{([\\s\\S]*?)^}`, 'm')
        .exec(read(file))![1]
        .matchAll(/^ {2}(\w+)\??:/gm),
    ].map(([, key]) => key);
  const keys = [
    ...keysOf('lib/training/grpo/stage.ts', 'GrpoMetrics'),
    ...keysOf('lib/training/loop.ts', 'TrainingMetrics'),
  ];
  expect(keys.length).toBeGreaterThan(15);
  const page = read('docs/grpo.md');
  const table = page.slice(page.indexOf('## Metrics'), page.indexOf('## In a program'));
  // The counters of the loop need no word.
  for (const key of keys.filter((key) => key !== 'step' && key !== 'maxSteps'))
    expect([key, table.includes(`\`${key}\``)]).toEqual([key, true]);
});
