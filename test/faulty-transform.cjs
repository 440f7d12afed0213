// The sources as jest runs them, with one fault in one of them: scripts/suites/faults.cjs. DULTRA_FAULT is
// { file, right, wrong } as JSON.
const path = require('node:path');
const { createTransformer } = require('@swc/jest');

const root = path.join(__dirname, '..');
const fault = JSON.parse(process.env.DULTRA_FAULT);
const file = path.join(root, fault.file);

/** A source with the fault, where it is the file. */
const faulty = (source, name) => (name === file ? source.replace(fault.right, () => fault.wrong) : source);

module.exports = {
  createTransformer(options) {
    const swc = createTransformer(options);
    return {
      ...swc,
      process: (source, name, more) => swc.process(faulty(source, name), name, more),
      getCacheKey: (source, name, more) => swc.getCacheKey(faulty(source, name), name, more),
    };
  },
};
