// What the package pulls in, and what its workflows run: licences, pins, install scripts, permissions.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parse } from 'yaml';
import { temporaryFolder } from './helpers';

const root = path.resolve(__dirname, '..');
const read = <T>(file: string) => JSON.parse(readFileSync(path.join(root, file), 'utf8')) as T;

interface Locked {
  version: string;
  license?: string;
  dev?: boolean;
  resolved?: string;
  integrity?: string;
  hasInstallScript?: boolean;
}
interface Manifest {
  dependencies?: Record<string, string>;
  devDependencies?: Record<string, string>;
  allowScripts?: Record<string, boolean>;
  scripts: Record<string, string>;
}

const locked = (file: string) =>
  Object.entries(read<{ packages: Record<string, Locked> }>(file).packages)
    .filter(([folder]) => folder !== '')
    .map(([folder, entry]) => ({ name: folder.replace(/^.*node_modules\//, ''), ...entry }));

/** Licences under which code can be used and passed on with no more than a notice. */
const PERMISSIVE = [
  'MIT',
  'ISC',
  'Apache-2.0',
  'BSD-2-Clause',
  'BSD-3-Clause',
  '0BSD',
  'BlueOak-1.0.0',
  'CC0-1.0',
  'Unlicense',
];
/** Beside those, for tools and test data that are used unchanged and not passed on. */
const FOR_TOOLS = ['Python-2.0', 'CC-BY-4.0', 'MPL-2.0'];

/** Whether an SPDX expression of names, AND, OR and parentheses is satisfied by the licences in `allowed`. */
function satisfies(expression: string, allowed: readonly string[]): boolean {
  const inner = expression.replace(/^\((.*)\)$/, '$1');
  if (/[()]/.test(inner)) throw new Error(`expected an expression without nested parentheses, got ${expression}`);
  return inner.split(' OR ').some((choice) => choice.split(' AND ').every((name) => allowed.includes(name)));
}

/** Packages of their own, which nobody installs with this one. */
const TOOLS = ['bench', 'test/clients'];

describe.each(['package-lock.json', ...TOOLS.map((folder) => `${folder}/package-lock.json`)])('%s', (file) => {
  const packages = locked(file);

  test('every licence is permissive', () => {
    expect(packages.length).toBeGreaterThan(5);
    const bad = packages.filter(
      ({ license = '', dev }) =>
        !satisfies(license, dev || file !== 'package-lock.json' ? [...PERMISSIVE, ...FOR_TOOLS] : PERMISSIVE),
    );
    expect(bad.map(({ name, license }) => `${name}: ${license}`)).toEqual([]);
  });

  test('every package has a checksum, and none an address of its own', () => {
    expect(packages.filter(({ integrity }) => !integrity).map(({ name }) => name)).toEqual([]);
    expect(packages.filter(({ resolved }) => resolved).map(({ name }) => name)).toEqual([]);
  });
});

test('a licence expression needs all of AND and one of OR', () => {
  expect(satisfies('MIT AND Apache-2.0', PERMISSIVE)).toBe(true);
  expect(satisfies('(GPL-3.0 OR MIT)', PERMISSIVE)).toBe(true);
  expect(satisfies('MIT AND GPL-3.0', PERMISSIVE)).toBe(false);
  expect(satisfies('', PERMISSIVE)).toBe(false);
});

test('versions are pinned', () => {
  for (const file of ['package.json', ...TOOLS.map((folder) => `${folder}/package.json`)]) {
    const { dependencies = {}, devDependencies = {} } = read<Manifest>(file);
    for (const [name, wanted] of Object.entries({ ...dependencies, ...devDependencies }))
      expect([name, wanted]).toEqual([name, expect.stringMatching(/^(npm:@?[\w/-]+@)?\d+\.\d+\.\d+$/)]);
  }
});

test('nothing that is installed runs a script', () => {
  const { allowScripts = {}, scripts } = read<Manifest>('package.json');
  const installers = locked('package-lock.json').filter(({ hasInstallScript }) => hasInstallScript);
  // What users install has none; what developers install has its own forbidden, or builds without it.
  expect(installers.filter(({ dev }) => !dev).map(({ name }) => name)).toEqual([]);
  for (const { name } of installers.filter(({ name }) => name !== 'fsevents'))
    expect([name, allowScripts[name]]).toEqual([name, false]);
  for (const name of ['preinstall', 'install', 'postinstall', 'prepare']) expect(scripts).not.toHaveProperty(name);
});

test('the parts list has everything that users install', () => {
  // The script itself compares with the lock.
  const { status, stdout, stderr } = spawnSync(process.execPath, [path.join(root, 'scripts', 'sbom.cjs')], {
    encoding: 'utf8',
  });
  expect([status, stderr]).toEqual([0, '']);
  const { metadata, components } = JSON.parse(stdout) as {
    metadata: { component: { name: string } };
    components: { name: string; licenses?: unknown }[];
  };
  expect(metadata.component.name).toBe('dultra');
  expect(components.map(({ name }) => name)).toEqual(
    expect.arrayContaining(Object.keys(read<Manifest>('package.json').dependencies!)),
  );
  for (const { name, licenses } of components) expect([name, licenses]).toEqual([name, expect.anything()]);
});

interface Step {
  uses?: string;
  run?: string;
  with?: Record<string, unknown>;
}
interface Workflow {
  permissions: Record<string, string>;
  jobs: Record<
    string,
    { steps: Step[]; permissions?: Record<string, string>; 'timeout-minutes'?: number; if?: string; needs?: unknown }
  >;
}

describe.each(readdirSync(path.join(root, '.github', 'workflows')))('workflow %s', (file) => {
  const text = readFileSync(path.join(root, '.github', 'workflows', file), 'utf8');
  const workflow = parse(text) as Workflow;
  const jobs = Object.entries(workflow.jobs);

  test('actions are pinned to commits, with the version beside them', () => {
    for (const [, { steps }] of jobs)
      for (const { uses } of steps) if (uses) expect(uses).toMatch(/^[\w-]+\/[\w/-]+@[0-9a-f]{40}$/);
    for (const line of text.split('\n')) if (/\buses:/.test(line)) expect(line).toMatch(/ # v\d+\.\d+\.\d+$/);
  });

  test('permissions are minimal, and jobs end', () => {
    expect(workflow.permissions).toEqual({ contents: 'read' });
    for (const [name, job] of jobs) {
      expect(job['timeout-minutes']).toBeGreaterThan(0);
      // Only publishing asks for more: a token of its own, for the provenance.
      if (job.permissions)
        expect([name, job.permissions]).toEqual(['publish', { contents: 'read', 'id-token': 'write' }]);
    }
  });

  test('checkouts keep no credentials', () => {
    for (const [, { steps }] of jobs)
      for (const { uses, with: inputs } of steps)
        if (uses?.startsWith('actions/checkout@')) expect(inputs?.['persist-credentials']).toBe(false);
  });

  test('npm scripts and files that it names exist', () => {
    const { scripts } = read<Manifest>('package.json');
    for (const [, name] of text.matchAll(/npm run (?:--silent )?([\w:]+)/g))
      expect(Object.keys(scripts)).toContain(name);
    for (const [, file] of text.matchAll(/(?:bash|node) (\.?[\w-]+\/[\w./-]+)/g))
      expect([file, existsSync(path.join(root, file))]).toEqual([file, true]);
  });
});

describe('a release', () => {
  const { problems, PLATFORMS } = require('../scripts/check-release.cjs') as {
    problems(root: string, environment: Record<string, string>, withPrebuilds: boolean): string[];
    PLATFORMS: string[];
  };
  const address = 'https://forge.example/somebody/dultra';
  const whole = {
    version: '1.2.3',
    repository: { type: 'git', url: `git+${address}.git` },
    homepage: address,
    bugs: `${address}/issues`,
  };
  const environment = { GITHUB_REF_NAME: 'v1.2.3', GITHUB_REPOSITORY: 'somebody/dultra' };

  function project(manifest: object, changelog = '## 1.2.3\n'): string {
    const folder = temporaryFolder();
    writeFileSync(path.join(folder, 'package.json'), JSON.stringify(manifest));
    writeFileSync(path.join(folder, 'CHANGELOG.md'), changelog);
    for (const platform of PLATFORMS) {
      mkdirSync(path.join(folder, 'prebuilds', platform), { recursive: true });
      writeFileSync(path.join(folder, 'prebuilds', platform, 'dultra.node'), '');
    }
    writeFileSync(path.join(folder, 'prebuilds', 'linux-x64', 'libdultra_cuda.so'), '');
    return folder;
  }

  test('that is whole may go', () => {
    expect(problems(project(whole), environment, true)).toEqual([]);
    expect(problems(project({ ...whole, repository: `${address}` }), environment, true)).toEqual([]);
  });

  test.each([
    [
      'another tag',
      whole,
      undefined,
      { ...environment, GITHUB_REF_NAME: 'v1.2.4' },
      /the tag is v1\.2\.4, the version of package\.json 1\.2\.3/,
    ],
    [
      'no address',
      { version: '1.2.3' },
      undefined,
      environment,
      /no "repository", "homepage", "bugs": before the first release, set them/,
    ],
    [
      'another address',
      whole,
      undefined,
      { ...environment, GITHUB_REPOSITORY: 'a/fork' },
      /repository is .*, but a\/fork is publishing/,
    ],
    ['no entry in the changelog', whole, '## 1.2.30\n', environment, /no heading "## 1\.2\.3"/],
    ['an unreleased version', whole, '## 1.2.3 (unreleased)\n', environment, /still calls 1\.2\.3 unreleased/],
  ])('%s stops it', (_name, manifest, changelog, variables, message) => {
    const found = problems(project(manifest, changelog), variables, true);
    expect(found).toEqual([expect.stringMatching(message)]);
  });

  test('missing binaries stop it', () => {
    const folder = project(whole);
    rmSync(path.join(folder, 'prebuilds', 'win32-x64', 'dultra.node'));
    rmSync(path.join(folder, 'prebuilds', 'linux-x64', 'libdultra_cuda.so'));
    expect(problems(folder, environment, true)).toEqual([
      'prebuilds/win32-x64 has no addon',
      'prebuilds/linux-x64 has no CUDA plugin',
    ]);
    expect(problems(folder, environment, false)).toEqual([]);
  });
});
