// What a schema costs a pass: values of a schema, against the same rows whose slots may become anything. The embedded
// model, whose passes are the shortest that there are; the same number of passes of the same length.
const dultra = require('../../dist/index.js');
const { alternate } = require('../lib/measure.cjs');

const SCHEMA = {
  type: 'object',
  properties: {
    name: { type: 'string' },
    age: { type: 'integer', minimum: 0, maximum: 120 },
    colour: { enum: ['red', 'green', 'blue'] },
    tags: { type: 'array', items: { type: 'string', maxLength: 5 }, maxItems: 2 },
  },
  required: ['name', 'age', 'colour', 'tags'],
  additionalProperties: false,
};
const PROMPT = 'Who is it?';

const cases = ({ threads }) => threads.map((count) => ({ threads: count }));

async function run({ threads, quick }) {
  const model = await dultra.loadModel(undefined, { threads });
  const options = { sampler: { type: 'fixed' }, stopAtEos: false };
  const bound = await model.generate(PROMPT, { ...options, schema: SCHEMA });
  // Positions that no pass decided were given.
  const completion = [...bound.ids].map((id, i) => (bound.unmaskedAt[i] > 0 ? model.config.maskTokenId : id));
  const template = { template: [...bound.promptIds, ...completion] };
  const free = await model.generate(template, options);
  const calls = {
    free: () => model.generate(template, options),
    schema: () => model.generate(PROMPT, { ...options, schema: SCHEMA }),
  };
  const timings = await alternate(calls, quick ? { seconds: 0.3, rounds: 1 } : { seconds: 2, rounds: 5 });
  const passes = { free: free.nfe, schema: bound.nfe };
  return Object.entries(timings).map(([name, { turns, ...timing }]) => ({
    shape: `embedded model, ${template.template.length} tokens, ${name}`,
    threads,
    contender: 'dultra fp32',
    unit: 'ms',
    ...timing,
    note: `${passes[name]} passes, ${(timing.median / passes[name]).toFixed(3)} ms a pass`,
  }));
}

module.exports = { title: 'Structured output', cases, run };
