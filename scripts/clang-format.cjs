// Formats the C++ sources, or those that are named; with --check reports which are not formatted.
const { spawnSync } = require('node:child_process');
const { readdirSync } = require('node:fs');
const path = require('node:path');

const root = path.resolve(__dirname, '..');
// Other versions format differently.
const tool = ['clang-format-14', 'clang-format'].find((name) =>
  / version 14\./.test(spawnSync(name, ['--version'], { encoding: 'utf8' }).stdout),
);
if (!tool) {
  process.stderr.write('dultra: clang-format 14 is not installed (Debian, Ubuntu: apt-get install clang-format-14)\n');
  process.exit(1);
}
const named = process.argv.slice(2).filter((argument) => argument !== '--check');
const files = ['native', 'bench/native'].flatMap((directory) =>
  readdirSync(path.join(root, directory), { recursive: true })
    .filter((file) => /\.(cc|h|inl|cu|cuh)$/.test(file))
    .map((file) => path.join(directory, file)),
);
const mode = process.argv.includes('--check') ? ['--dry-run', '--Werror'] : ['-i'];
const { status } = spawnSync(tool, [...mode, '--style=file', ...(named.length > 0 ? named : files)], {
  cwd: root,
  stdio: 'inherit',
});
process.exit(status ?? 1);
