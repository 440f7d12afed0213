// The routes of examples/nextjs, with the AI SDK 7 and without Next.js: node routes.mjs REVIEW PROMPT. Prints their
// answers as JSON. Node.js 22 reads their types away.
import { registerHooks } from 'node:module';

const found = {
  ai: new URL('node_modules/ai/dist/index.js', import.meta.url),
  dultra: new URL('../../dist/index.js', import.meta.url),
  'dultra/ai-sdk': new URL('../../dist/ai-sdk/index.js', import.meta.url),
};
registerHooks({
  resolve: (name, context, next) =>
    name in found && context.parentURL?.includes('/examples/nextjs/')
      ? next(found[name].href, context)
      : next(name, context),
});

const [text, prompt] = process.argv.slice(2);
const route = (name) => import(new URL(`../../examples/nextjs/app/api/${name}/route.ts`, import.meta.url));
const ask = async (name, body) => {
  const { POST } = await route(name);
  const request = new Request('http://localhost', { method: 'POST', body: JSON.stringify(body) });
  const response = await POST(request);
  return [response.status, await response.text()];
};
const got = {
  decided: await ask('decide', { text }),
  answered: await ask('chat', { prompt }),
  refused: [(await ask('decide', {}))[0], (await ask('chat', { prompt: ' ' }))[0]],
};
process.stdout.write(JSON.stringify(got));
