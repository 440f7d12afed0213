// Jest runs tests in a realm of its own, while the addon makes its arrays and errors in the main one: without this,
// `toBeInstanceOf(Float32Array)` and `toThrow(TypeError)` would fail on what the addon returns.
const { TestEnvironment } = require('jest-environment-node');

const SHARED = [
  'Error',
  'TypeError',
  'RangeError',
  'Float32Array',
  'Float64Array',
  'Int32Array',
  'Uint32Array',
  'Uint16Array',
  'Uint8Array',
  'BigInt64Array',
  'BigUint64Array',
  'ArrayBuffer',
];

module.exports = class NativeEnvironment extends TestEnvironment {
  async setup() {
    await super.setup();
    for (const name of SHARED) this.global[name] = globalThis[name];
  }
};
