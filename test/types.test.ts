// The published types, as strict programs see them.
import { spawnSync } from 'node:child_process';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import ts from 'typescript';
import { temporaryFolder } from './helpers';

const root = path.resolve(__dirname, '..');
const compiler = path.join(root, 'node_modules', '.bin', 'tsc');

/** What the compiler says of a program beside the package, under the strictest settings and without the DOM. */
function compile(program: string): string {
  const folder = temporaryFolder();
  mkdirSync(path.join(folder, 'node_modules'));
  symlinkSync(root, path.join(folder, 'node_modules', 'dultra'), 'junction');
  writeFileSync(path.join(folder, 'package.json'), '{ "type": "module" }');
  const compilerOptions = {
    ...{ strict: true, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, skipLibCheck: false },
    ...{ types: [], lib: ['ES2022'], target: 'ES2022', module: 'NodeNext', noEmit: true },
  };
  writeFileSync(path.join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['program.mts'] }));
  writeFileSync(path.join(folder, 'program.mts'), program);
  const { stdout, status } = spawnSync(process.execPath, [compiler, '-p', folder], { encoding: 'utf8' });
  expect(status).toBe(stdout === '' ? 0 : status);
  return stdout;
}

/** Exported types of what callers write, with the namespaces that they are in. */
function inputTypes(): string[] {
  const file = path.join(root, 'dist', 'index.d.ts');
  const program = ts.createProgram([file], { module: ts.ModuleKind.NodeNext, types: [] });
  const checker = program.getTypeChecker();
  const names = (module: ts.Symbol, prefix: string): string[] =>
    checker.getExportsOfModule(module).flatMap((symbol) => {
      const target = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
      const name = `${prefix}${symbol.name}`;
      if (target.flags & ts.SymbolFlags.ValueModule) return names(target, `${name}.`);
      const isInput = /(Options|Request|Input|ExampleData|DataRecord|TrainingExample|Sampler|Cache)$/.test(name);
      return target.flags & ts.SymbolFlags.Interface && isInput ? [name] : [];
    });
  return names(checker.getSymbolAtLocation(program.getSourceFile(file)!)!, '');
}

test('a strict program compiles, and so do the declarations that it reaches', () => {
  expect(
    compile(`
import { datasets, evaluate, GrpoTrainer, loadModel, rewards, trainMaskedDiffusion } from 'dultra';
import type { ChatMessage, GenerateOptions } from 'dultra';

using model = await loadModel();
using cache = await model.createCache([4]);
using trainer = await model.createTrainer();
const messages: readonly ChatMessage[] = [{ role: 'user', content: 'hi' }];
const temperature = (process.env.T ? 1 : undefined) as number | undefined;
const signal: AbortSignal | undefined = undefined;
const options: GenerateOptions = { sampler: 'confidence:0.9', cache: 'dual', temperature, seed: undefined, signal };
for await (const piece of model.textStream(messages, options)) console.log(piece);
const results = await model.generateBatch([messages, 'text', { promptIds: [1] }] as const, options);
console.log(results.map(({ text }) => text), cache.bytes, trainer.lora);
const dataset = datasets.wordProblems('st1');
await evaluate(model, { dataset, samplers: ['planner', 'confidence:0.9'], caches: ['none', 'dual'], signal });
await evaluate(model, { dataset, samplers: { fast: 'planner', mine: ({ positions }) => positions } });
for await (const { loss } of trainMaskedDiffusion(model, { dataset, evalSampler: 'fixed:4', maxSteps: undefined }))
  console.log(loss);
await using grpo = new GrpoTrainer(model, {
  dataset,
  rewards: { fast: rewards.fastAnswer({ weight: undefined }) },
  cache: 'dual',
  evalSampler: 'planner',
});
for await (const { step } of grpo.train({ signal })) console.log(step);
`),
  ).toBe('');
}, 60_000);

test('every option may be undefined', () => {
  const inputs = inputTypes();
  expect(inputs).toEqual(expect.arrayContaining(['GenerateOptions', 'PlannerSampler', 'kernels.UnmaskOptions']));
  const checks = inputs.map((name, i) => `export const check${i}: Refused<import('dultra').${name}> = [];`);
  expect(
    compile(`
type Keys<T> = T extends unknown ? { [K in keyof T]-?: {} extends Pick<T, K> ? (undefined extends Required<T>[K] ? never : K) : never }[keyof T] : never;
/** The keys of optional properties that refuse undefined. */
type Refused<T> = Keys<T>[] & { length: [Keys<T>] extends [never] ? number : Keys<T> };
${checks.join('\n')}
`),
  ).toBe('');
}, 60_000);
