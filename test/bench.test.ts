// The benchmark's arithmetic; the benchmark itself is run by people.
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

interface Row {
  shape: string;
  threads: number;
  contender: string;
  ratio?: number;
}
interface Result {
  sections: { name: string; rows: Row[] }[];
}
const { compareRatios } = require('../bench/lib/regression.cjs') as {
  compareRatios(
    before: Result,
    now: Result,
  ): { compared: number; slower: { key: string; before: number; now: number }[] };
};

const results = path.join(__dirname, '..', 'bench', 'results');
const read = (file: string) => JSON.parse(readFileSync(path.join(results, file), 'utf8')) as Result;

test('a result has not become slower than itself; one whose ratios have fallen has, where they fell by more than 15 %', () => {
  const before = read(readdirSync(results).find((file) => /^2026-11-25-cpu-avx512-bf16\.json$/.test(file))!);
  const same = compareRatios(before, before);
  expect(same.compared).toBeGreaterThan(50);
  expect(same.slower).toEqual([]);
  const scaled = (factor: number): Result => ({
    sections: before.sections.map(({ name, rows }) => ({
      name,
      rows: rows.map((row) => (row.ratio === undefined ? row : { ...row, ratio: row.ratio * factor })),
    })),
  });
  expect(compareRatios(before, scaled(0.9)).slower).toEqual([]);
  expect(compareRatios(before, scaled(0.8)).slower).toHaveLength(same.compared);
  expect(compareRatios(scaled(0.8), before).slower).toEqual([]);
});

test('rows that only one result has are left out', () => {
  const row = { shape: 'T 1', threads: 1, contender: 'dultra' };
  const before = {
    sections: [
      {
        name: 'a',
        rows: [
          { ...row, ratio: 2 },
          { ...row, threads: 2, ratio: 1 },
        ],
      },
    ],
  };
  const now = { sections: [{ name: 'a', rows: [{ ...row, ratio: 1 }, { ...row, shape: 'T 2', ratio: 0.1 }, row] }] };
  expect(compareRatios(before, now)).toEqual({
    compared: 1,
    slower: [{ key: 'a: T 1, 1 thread: dultra', before: 2, now: 1 }],
  });
});
