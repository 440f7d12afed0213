// OpenAI's client (npm install openai) and a running "dultra serve": node serve-openai.mjs [PROMPT] [URL]
import OpenAI from 'openai';

const [prompt, url = 'http://127.0.0.1:8242'] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: process.env.DULTRA_KEY ?? 'none' });
const [{ id: model }] = (await client.models.list()).data;
const content = prompt || 'Extract the order as JSON: Hi, this is Anna. I need 3 red mugs sent to Paris.';
const request = { model, messages: [{ role: 'user', content }], max_tokens: 48 };

// The answer as a whole; its usage says how many forward passes it took.
const { choices, usage } = await client.chat.completions.create(request);
console.log(`${choices[0].message.content}  (${usage.completion_tokens} tokens in ${usage.nfe} passes)`);

// As a stream: text as it becomes final, and what each pass decided. Fields of this server stand beside OpenAI's own.
const streamed = { ...request, sampler: 'confidence:0.9', stream: true, stream_mode: 'denoise' };
let passes = 0;
for await (const chunk of await client.chat.completions.create(streamed)) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? '');
  if (chunk.dultra?.frame) passes = chunk.dultra.frame.step;
}
console.log(`  (${passes} passes)`);

// As a value of a schema, whatever the model would rather say.
const format = { type: 'json_schema', json_schema: { name: 'mood', schema: { enum: ['good', 'bad'] } } };
const question = [{ role: 'user', content: 'Is this good or bad? The soup was cold.' }];
const value = await client.chat.completions.create({ model, messages: question, response_format: format });
console.log(JSON.parse(value.choices[0].message.content));
