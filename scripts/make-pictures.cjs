// npm run pictures: the pictures of README.md and docs/, made from runs of the embedded models and from bench/results.
//
//   node scripts/make-pictures.cjs            all of them
//   node scripts/make-pictures.cjs frontier   one
const { mkdirSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const dultra = require('..');
const { demo, frontier, samplers, unmasking } = require('./pictures/runs.cjs');
const { caches, forward, steps, study } = require('./pictures/results.cjs');

const OUT = path.resolve(__dirname, '..', 'docs', 'pictures');

async function main() {
  const pictures = {
    demo,
    unmasking,
    samplers,
    frontier,
    forward,
    caches,
    steps,
    'study-st1': () => study('st1', 25),
    'study-free12': () => study('free12', 12.6),
  };
  const wanted = process.argv.slice(2);
  const unknown = wanted.find((name) => !Object.hasOwn(pictures, name));
  if (unknown) throw new Error(`expected ${Object.keys(pictures).join(', ')}, got ${unknown}`);
  mkdirSync(OUT, { recursive: true });
  const model = await dultra.loadModel('word-problems');
  for (const [name, draw] of Object.entries(pictures)) {
    if (wanted.length > 0 && !wanted.includes(name)) continue;
    writeFileSync(path.join(OUT, `${name}.svg`), await draw(model));
    process.stdout.write(`docs/pictures/${name}.svg\n`);
  }
  model.dispose();
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
});
