// npm run build:native: builds build/Release/dultra.node through cmake-js, also inside an installed package (npm
// explore dultra -- npm run build:native), which has no development dependencies. npm run build:debug (--debug): the
// same without optimisation and with symbols, in build/debug; DULTRA_PREBUILD=$PWD/build/debug loads it.
const { build, configureAddon } = require('./cmake.cjs');
const { checkPrerequisites, SetupError } = require('./setup.cjs');

try {
  checkPrerequisites();
  const preset = process.argv.includes('--debug') ? 'debug' : 'release';
  configureAddon(preset);
  build(preset, ['addon']);
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  process.stderr.write(`dultra: ${error.message}\n`);
  process.exitCode = 1;
}
