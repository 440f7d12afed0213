// What has to hold before a version is published (.github/workflows/prebuild.yml, on a tag): the tag is the version,
// the changelog has it, and package.json says where the sources are. With --prebuilds also that every platform's binary
// is there.
const { existsSync, readdirSync, readFileSync } = require('node:fs');
const path = require('node:path');

const PLATFORMS = ['linux-x64', 'linux-arm64', 'darwin-arm64', 'win32-x64'];

/**
 * What is wrong with a release, one sentence each.
 * @param root the project's folder
 * @param environment GITHUB_REF_NAME, the tag, and GITHUB_REPOSITORY, owner/name
 */
function problems(root, environment, withPrebuilds) {
  const found = [];
  const { version, repository, homepage, bugs } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));
  const { GITHUB_REF_NAME: tag, GITHUB_REPOSITORY: address } = environment;
  if (tag !== `v${version}`)
    found.push(`the tag is ${tag}, the version of package.json ${version}: expected v${version}`);
  const heading = new RegExp(`^## ${version.replaceAll('.', '\\.')}(?![\\d.])(.*)$`, 'm').exec(
    readFileSync(path.join(root, 'CHANGELOG.md'), 'utf8'),
  );
  if (!heading) found.push(`CHANGELOG.md has no heading "## ${version}"`);
  else if (heading[1].includes('unreleased')) found.push(`CHANGELOG.md still calls ${version} unreleased`);
  const missing = Object.entries({ repository, homepage, bugs }).filter(([, value]) => !value);
  if (missing.length > 0)
    found.push(
      `package.json has no ${missing.map(([name]) => `"${name}"`).join(', ')}: before the first release, set them to the project's public address ` +
        '(CONTRIBUTING.md, "Release"); npm refuses the provenance of a package that does not name its repository',
    );
  const url = typeof repository === 'string' ? repository : repository?.url;
  if (url && !url.replace(/\.git$/, '').endsWith(`/${address}`))
    found.push(`package.json's repository is ${url}, but ${address} is publishing`);
  if (withPrebuilds) {
    for (const platform of PLATFORMS) {
      const folder = path.join(root, 'prebuilds', platform);
      if (!existsSync(folder) || !readdirSync(folder).some((file) => file.endsWith('.node')))
        found.push(`prebuilds/${platform} has no addon`);
    }
    if (!existsSync(path.join(root, 'prebuilds', 'linux-x64', 'libdultra_cuda.so')))
      found.push('prebuilds/linux-x64 has no CUDA plugin');
  }
  return found;
}

module.exports = { problems, PLATFORMS };

if (require.main === module) {
  const found = problems(path.resolve(__dirname, '..'), process.env, process.argv.includes('--prebuilds'));
  for (const problem of found) process.stderr.write(`dultra: ${problem}\n`);
  process.exitCode = found.length > 0 ? 1 : 0;
}
