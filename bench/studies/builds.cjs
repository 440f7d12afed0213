// Whether another build of the package decodes faster or slower: both in one process, in turns, on the embedded models.
//
//   node bench/studies/builds.cjs --other FOLDER [--seconds 4] [--rounds 12] [--out FILE]
//
// FOLDER is another checkout of this repository, built. Prints by case the other's time over this one's: above 1 this one
// is faster. Both must give the same texts.
const { writeFileSync } = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { alternate, speedup } = require('../lib/measure.cjs');
const { machine } = require('../lib/report.cjs');

const ROOT = path.join(__dirname, '..', '..');
const WORDS = 'anna has 3 apples . she buys 4 . how many now ? story';
const ORDER = 'Extract the order as JSON: Hi, this is Anna. I need 3 red mugs sent to Paris.';

/** Cases: name of a model, rows, and options. */
const CASES = [1, 4, 16].flatMap((rows) => [
  { model: 'word-problems', rows, options: { sampler: 'fixed' } },
  { model: 'word-problems', rows, options: { sampler: 'planner' } },
  { model: 'word-problems', rows, options: { sampler: 'confidence:0.9', cache: 'dual' } },
  { model: 'world', rows, options: { sampler: 'confidence:0.9' } },
  { model: 'world', rows, options: { sampler: 'factor:1', cache: 'dual' } },
  { model: 'world', rows, options: { sampler: 'fixed', temperature: 0.7, seed: 3 } },
]);

const shown = ({ model, rows, options }) =>
  `${model}, ${rows} row${rows === 1 ? '' : 's'}, ${Object.entries(options)
    .map(([key, value]) => (key === 'sampler' ? value : `${key} ${value}`))
    .join(', ')}`;

async function main() {
  const { values } = parseArgs({
    options: {
      other: { type: 'string' },
      seconds: { type: 'string', default: '4' },
      rounds: { type: 'string', default: '12' },
      out: { type: 'string' },
    },
  });
  if (!values.other) throw new Error('--other: expected the folder of another build');
  const builds = { this: require(ROOT), other: require(path.resolve(values.other)) };
  const models = {};
  for (const [build, { loadModel }] of Object.entries(builds))
    for (const name of ['word-problems', 'world'])
      models[`${build} ${name}`] = await loadModel(path.join(ROOT, 'models', name), { threads: 1 });
  const lines = [];
  for (const one of CASES) {
    const prompts = new Array(one.rows).fill(one.model === 'world' ? ORDER : WORDS);
    const run = async (build) => {
      const model = models[`${build} ${one.model}`];
      if (one.rows === 1) return [await model.generate(prompts[0], one.options)];
      return model.generateBatch(prompts, one.options);
    };
    const [ours, theirs] = [await run('this'), await run('other')];
    const nfe = Math.max(...ours.map((result) => result.nfe));
    if (ours.some(({ text }, i) => text !== theirs[i].text)) throw new Error(`${shown(one)}: the texts differ`);
    const times = await alternate(
      { this: () => run('this'), other: () => run('other') },
      { seconds: Number(values.seconds), rounds: Number(values.rounds) },
    );
    const [wall, cpu] = ['wall', 'cpu'].map((clock) => speedup(times.this, times.other, clock));
    const ms = ({ median, p10, p90 }) => `${median.toPrecision(3)} (${p10.toPrecision(3)}–${p90.toPrecision(3)})`;
    lines.push([shown(one), nfe, ms(times.this), ms(times.other), wall.toFixed(2), cpu.toFixed(2)]);
    process.stderr.write(`${lines.at(-1).join(' | ')}\n`);
  }
  const head = ['case', 'passes', 'ms', 'other, ms', 'times as fast', 'by CPU time'];
  const at = machine({ dultra: require('../../package.json').version });
  const text = [
    '# Two builds, in turns',
    `\`node bench/studies/builds.cjs ${process.argv.slice(2).join(' ')}\``,
    Object.entries(at)
      .map(([name, value]) => `${name}: ${value}`)
      .join(' · '),
    'Medians with tenth and ninetieth percentile; the ratio is the median over rounds that compare neighbours in time.',
    [head, head.map(() => '---'), ...lines].map((line) => `| ${line.join(' | ')} |`).join('\n'),
  ].join('\n\n');
  process.stdout.write(`${text}\n`);
  if (values.out) writeFileSync(values.out, `${text}\n`);
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exitCode = 1;
});
