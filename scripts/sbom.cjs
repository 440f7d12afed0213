// npm run --silent sbom > sbom.cdx.json: the parts list (CycloneDX) of what users install. `npm sbom --omit=dev` in a
// clone would leave out every package that a development tool needs too, so the list is made of a manifest that knows
// no development dependencies.
const { spawnSync } = require('node:child_process');
const { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { npmCommand, root } = require('./setup.cjs');

/** Runs npm in `folder`; returns its standard output. Throws with everything it said where it fails. */
function npm(folder, ...args) {
  const [command, ...first] = npmCommand();
  const { status, stdout, stderr, error } = spawnSync(command, [...first, ...args], {
    cwd: folder,
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  });
  if (error || status !== 0)
    throw new Error(`npm ${args.join(' ')}: ${error?.message ?? `exit code ${status}`}\n${stdout}${stderr}`);
  return stdout;
}

/** The parts list; throws where a package that users install is not in it. */
function partsList() {
  const temporary = mkdtempSync(path.join(os.tmpdir(), 'dultra-sbom-'));
  try {
    const { devDependencies, peerDependencies, peerDependenciesMeta, ...manifest } = JSON.parse(
      readFileSync(path.join(root, 'package.json'), 'utf8'),
    );
    // npm takes the folder's name for the package's.
    const folder = path.join(temporary, manifest.name);
    mkdirSync(folder);
    writeFileSync(path.join(folder, 'package.json'), JSON.stringify(manifest));
    for (const file of ['package-lock.json', '.npmrc']) copyFileSync(path.join(root, file), path.join(folder, file));
    npm(folder, 'install', '--package-lock-only', '--ignore-scripts', '--offline');
    const text = npm(folder, 'sbom', '--package-lock-only', '--sbom-format=cyclonedx');
    const listed = new Set(JSON.parse(text).components.map(({ name, version }) => `${name}@${version}`));
    const { packages } = JSON.parse(readFileSync(path.join(root, 'package-lock.json'), 'utf8'));
    const installed = Object.entries(packages).filter(([where, { dev }]) => where !== '' && !dev);
    const missing = installed
      .map(([where, { version }]) => `${where.replace(/^.*node_modules\//, '')}@${version}`)
      .filter((name) => !listed.has(name));
    if (missing.length > 0) throw new Error(`the parts list lacks ${missing.join(', ')}`);
    return text;
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}

process.stdout.write(partsList());
