// dultra serve: the models that its command line names.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { Command } from 'commander';
import { register, sourcesOf } from '../lib/cli/commands/serve';

test('every option stands in the documentation', () => {
  const program = new Command();
  register(program);
  const [command] = program.commands;
  const page = readFileSync(path.join(__dirname, '..', 'docs', 'serving.md'), 'utf8');
  const options = command.options.map(({ long }) => long!);
  expect(options.length).toBeGreaterThan(20);
  expect(options.filter((option) => !new RegExp(`\`(-\\w, )?${option}[ \`]`).test(page))).toEqual([]);
});

test('models and adapters by their names', () => {
  expect(sourcesOf([], [])).toEqual([{ name: 'dultra' }]);
  expect(sourcesOf(['org/a'], ['./one'])).toEqual([{ name: 'dultra', model: 'org/a', adapter: './one' }]);
  expect(sourcesOf(['a=org/a', 'b=./b=c'], ['p=./p', 'b:q=./q'])).toEqual([
    { name: 'a', model: 'org/a' },
    { name: 'b', model: './b=c' },
    { name: 'a:p', model: 'org/a', adapter: './p' },
    { name: 'b:q', model: './b=c', adapter: './q' },
  ]);
});

test.each([
  [['a', 'b'], [], '--model: expected NAME=SOURCE for a second model, got b'],
  [['a=x', 'a=y'], [], '--model: a is given twice'],
  [['a:b=x'], [], '--model: expected a name without ":", got a:b'],
  [['a=x'], ['c:p=y'], '--adapter: expected [MODEL:]NAME=FOLDER with a model of --model, got c:p=y'],
  [['a=x'], ['y', 'z'], '--adapter: expected NAME=FOLDER for a second one, got z'],
  [['a=x'], ['p=y', 'a:p=z'], '--adapter: a:p is given twice'],
])('%j with adapters %j is refused', (models, adapters, message) => {
  expect(() => sourcesOf(models, adapters)).toThrow(message);
});
