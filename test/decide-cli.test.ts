// dultra decide and dultra calibrate.
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { datasets } from '../lib';
import { inOneProcess } from './command-line';
import { temporaryFolder } from './helpers';

const REVIEW = 'The soup was awful and the waiter was dreadful.';

test('one state: known questions, a question of flags, JSON, and a refusal', () => {
  const questions = '{"q":{"type":"score","instructions":"How many stars?","criteria":["a","b","c","d","e"]}}';
  const [all, one, json, refused] = inOneProcess([
    ['decide', REVIEW],
    ['decide', REVIEW, '--ask', 'Which mood?', '--options', 'positive,negative'],
    ['decide', REVIEW, '--questions', questions, '--json', '--no-calibration'],
    ['decide', 'What is 8 + 6?', '--ask', 'x', '--min-option-mass', '0.9', '--quiet'],
  ]);
  expect([all.code, one.code, json.code, refused.code]).toEqual([0, 0, 0, 0]);
  expect(all.stdout).toMatch(/^sentiment: negative \(confidence [01]\.\d+, option mass 0\.9/m);
  expect(all.stdout).toMatch(/^ {2}negative {2}0\.9\d+ {2}█+$/m);
  expect(all.stdout).toMatch(/^again: no /m);
  expect(all.stderr).toMatch(/^not calibrated: /);
  expect(one.stdout).toMatch(/^answer: negative/m);
  expect(JSON.parse(json.stdout).answers.q).toMatchObject({ type: 'score', legend: ['a', 'b', 'c', 'd', 'e'] });
  expect(refused.stdout).toMatch(/^answer: refused, option mass 0\.\d+\n$/);
});

test('a file of states, which goes on after an interruption', () => {
  const folder = temporaryFolder();
  const [input, out] = ['in.jsonl', 'out.jsonl'].map((name) => path.join(folder, name));
  const lines = [
    { id: 7, state: REVIEW },
    { state: 'x', questions: { q: { type: 'boolean', instructions: 'y' } } },
    { state: 5 },
    'no record',
    { state: 'The lamp is great.', questions: { q: { type: 'box' } } },
  ];
  writeFileSync(input, `${lines.map((line) => JSON.stringify(line)).join('\n')}\n{bad\n`);
  const command = ['decide', '--batch', input, '--out', out];
  const [first] = inOneProcess([command]);
  expect([first.code, first.stderr]).toEqual([1, expect.stringContaining('answers to 2 lines')]);
  const text = readFileSync(out, 'utf8');
  const records = text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  expect(records.map(({ line, id, error }) => [line, id, error?.slice(0, 20)])).toEqual([
    [1, 7, undefined],
    [2, undefined, undefined],
    [3, undefined, 'state: expected a te'],
    [4, undefined, 'expected an object s'],
    [5, undefined, 'questions.q.type: ex'],
    [6, undefined, 'expected JSON such a'],
  ]);
  expect(records[0].answers.sentiment.choice).toBe('negative');
  // Killed in the middle of a line.
  writeFileSync(out, text.slice(0, text.indexOf('\n') + 12));
  const [again, once, other] = inOneProcess([command, command, [...command, '--ask', 'x']]);
  expect([again.code, once.code]).toEqual([1, 1]);
  expect(readFileSync(out, 'utf8')).toBe(text);
  expect(other).toMatchObject({ code: 2, stderr: expect.stringContaining('or of other options') });
});

test('calibrate writes temperatures, figures and pictures, and decide takes them', () => {
  const folder = temporaryFolder();
  const [data, out, report] = ['data.jsonl', 'decision.json', 'report.html'].map((name) => path.join(folder, name));
  const examples = datasets.worldDecisions('validation', 500, 3);
  writeFileSync(data, examples.map((example) => JSON.stringify(example)).join('\n'));
  const [made, decided, few] = inOneProcess([
    ['calibrate', '--data', data, '--out', out, '--report', report],
    ['decide', REVIEW, '--decision-file', out],
    ['calibrate', '--data', 'world', '--count', '20', '--json'],
  ]);
  expect([made.code, decided.code, few.code]).toEqual([0, 0, 0]);
  expect(made.stdout).toMatch(/^boolean +at temperature 1 +\d+/m);
  expect(made.stdout).toMatch(/^boolean: mean distance from the known probabilities 0\.0\d+, calibrated 0\.0\d+$/m);
  const { calibration, questions } = JSON.parse(readFileSync(out, 'utf8'));
  expect(Object.keys(calibration.types)).toEqual(['boolean', 'choice', 'score']);
  expect(Object.keys(questions)).toEqual(['sentiment', 'stars', 'again', 'triage']);
  expect(decided.stderr).toMatch(/^calibrated probabilities/m);
  const html = readFileSync(report, 'utf8');
  expect(html.match(/<svg /g)).toHaveLength(6);
  expect(html).not.toMatch(/<script|https?:|NaN|undefined/);
  const { types, calibration: none } = JSON.parse(few.stdout);
  expect([none.types, types.choice.after]).toEqual([{}, null]);
});

test('what a command line says wrongly', () => {
  const cases: [string[], RegExp][] = [
    [['decide', 'a', '--options', 'x'], /--options: expected at least two/],
    [['decide', 'a', '--options', 'x,x'], /--options: expected names that differ/],
    [['decide', 'a', '--options', 'x,y', '--levels', 'a,b'], /--levels: not together with --options/],
    [['decide', 'a', '--ask', 'x', '--questions', '{}'], /--ask: not together with --questions/],
    [['decide', 'a', '--questions', '{'], /--questions: expected JSON/],
    [['decide', 'a', '--questions', '/nowhere.json'], /--questions: expected JSON, or a file with it/],
    [['decide', 'a', '--state', '{}'], /--state: not together/],
    [['decide', 'a', '--out', 'x'], /--out: expected together with --batch/],
    [['decide', 'a', '--batch', '/nowhere'], /STATE: not together with --batch/],
    [['decide', '--batch', '/nowhere'], /--batch: expected a file/],
    [['decide', 'a', '--orders', '3', '--ask', 'x'], /--orders: expected/],
    [['calibrate'], /required option '--data <file>'/],
    [['calibrate', '--data', '/nowhere'], /no such file/i],
  ];
  inOneProcess(cases.map(([args]) => args)).forEach(({ code, stderr }, i) => {
    expect([cases[i][0], code !== 0, stderr]).toEqual([cases[i][0], true, expect.stringMatching(cases[i][1])]);
  });
});
