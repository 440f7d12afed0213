// The provider of dultra/ai-sdk with the AI SDK 7, in one process: node provider.mjs MODEL_FOLDER REVIEW. Prints what it
// got as JSON.
import { createRequire } from 'node:module';
import { experimental_decide as decide, generateObject, generateText, jsonSchema, streamText } from 'ai';

const require = createRequire(import.meta.url);
const { loadModel } = require('../../dist/index.js');
const { createDultra } = require('../../dist/ai-sdk/index.js');

globalThis.AI_SDK_LOG_WARNINGS = false;
const [folder, review] = process.argv.slice(2);
const tiny = await loadModel(folder, { threads: 1 });
const world = await loadModel('world', { threads: 1 });
const dultra = createDultra({ models: { tiny, world }, options: { sampler: 'confidence:0.2' } });
const messages = [{ role: 'user', content: 'a+b' }];
const call = { model: dultra('tiny'), messages, maxOutputTokens: 16, maxRetries: 0 };
const got = { node: process.versions.node };

const whole = await generateText(call);
got.whole = [whole.text, whole.usage.outputTokens, whole.providerMetadata.dultra.nfe];
let text = '';
const positions = [];
for await (const part of streamText({ ...call, includeRawChunks: true }).fullStream) {
  if (part.type === 'text-delta') text += part.text;
  if (part.type === 'raw') positions.push(...part.rawValue.unmasked.map(({ position }) => position));
}
got.streamed = [text, positions.length, new Set(positions).size];
const schema = jsonSchema({
  type: 'object',
  properties: { n: { type: 'integer', minimum: 3, maximum: 40 }, colour: { enum: ['red', 'blue'] } },
  required: ['n', 'colour'],
  additionalProperties: false,
});
got.object = (await generateObject({ model: dultra('tiny'), messages, schema, temperature: 1, seed: 4 })).object;

const questions = {
  again: { type: 'boolean', instructions: 'Will the customer buy again?' },
  mood: {
    type: 'choice',
    instructions: 'Is this review positive, negative or neutral?',
    criteria: { positive: null, negative: null, neutral: null },
  },
  stars: { type: 'score', instructions: 'How many stars?', criteria: ['one', 'two', 'three', 'four', 'five'] },
};
const decided = await decide({ model: dultra.decisionModel('world'), state: review, questions });
got.answers = decided.answers;
got.usage = decided.usage;
got.calibrated = decided.providerMetadata.dultra.calibrated;
const refuse = { providerOptions: { dultra: { minOptionMass: 0.9 } }, maxRetries: 0 };
const strange = { a: { type: 'boolean', instructions: 'xyz' } };
got.refused = await decide({
  model: dultra.decisionModel('world'),
  state: { sum: 'What is 8 + 6?' },
  questions: strange,
  ...refuse,
}).catch(({ name, questionIds }) => [name, questionIds]);
got.unsupported = await decide({
  model: dultra.decisionModel('world'),
  state: review,
  questions: { where: { type: 'box', instructions: 'Where?' } },
}).catch(({ name }) => name);
tiny.dispose();
world.dispose();

process.stdout.write(JSON.stringify(got));
