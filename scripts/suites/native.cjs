// npm run test:native: builds and runs the C++ tests; arguments go to the test program (--filter <part of a name>).
// --sanitize (npm run test:sanitize): under AddressSanitizer + UndefinedBehaviorSanitizer, then ThreadSanitizer;
// --sanitize=address or =thread alone.
const { build, configure } = require('../cmake.cjs');
const { runTests, sanitizers } = require('./native-program.cjs');

module.exports = async (args) => {
  const { variants, rest } = sanitizers(args);
  for (const sanitizer of variants) {
    const preset = { none: 'release', address: 'asan', thread: 'tsan' }[sanitizer];
    configure(preset);
    build(preset, ['dultra_tests']);
    await runTests(preset, 'dultra_tests', rest);
  }
};
