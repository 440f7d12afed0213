// Tests compare bits with what the CPU gives: "auto" must not find a GPU, unless somebody names a plugin.
process.env.DULTRA_CUDA_PLUGIN ??= `${__dirname}/build/no-cuda.so`;

module.exports = {
  // Ends a test that hangs, and none that is slow on a busy machine.
  testTimeout: 900_000,
  testEnvironment: '<rootDir>/test/environment.cjs',
  testMatch: ['<rootDir>/test/**/*.test.ts'],
  // A copy of the sources with faults in them (scripts/suites/mutants.cjs).
  modulePathIgnorePatterns: ['<rootDir>/build/mutants/'],
  transform: {
    '^.+\\.(ts|js|mjs)$': [
      '@swc/jest',
      { jsc: { parser: { syntax: 'typescript' }, target: 'es2022' }, module: { type: 'commonjs' } },
    ],
  },
  transformIgnorePatterns: [
    '/node_modules/(?!(@huggingface|hyparquet|hyparquet-compressors|hyparquet-writer|hysnappy|fzstd)/)',
  ],
};
