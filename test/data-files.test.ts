// Files of records as they come from other programs: byte order marks, gzip, other encodings, damage, great size.
import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs';
import path from 'node:path';
import { gzipSync } from 'node:zlib';
import { parquetWriteBuffer } from 'hyparquet-writer';
import { datasets, decodeText } from '../lib';
import { filesOfSplit, readRecords } from '../lib/data/records';
import { exceptOnWindows, temporaryFolder } from './helpers';

const RECORDS = [
  { question: 'Ada has 4 cats, one runs off. How many?', answer: 'Four less one.\n#### 3' },
  { question: 'Zoë, 日本 and a \\"quote\\", [brackets], {braces}?', answer: 'It is so.\n#### 17' },
];
const LINES = RECORDS.map((record) => JSON.stringify(record)).join('\n');
const ARRAY = JSON.stringify(RECORDS, null, 2);
const MARK = '\ufeff';

function file(name: string, content: string | Uint8Array): string {
  const full = path.join(temporaryFolder(), name);
  writeFileSync(full, content);
  return full;
}

async function read(full: string): Promise<unknown[]> {
  const values: unknown[] = [];
  for await (const { value } of readRecords(full)) values.push(value);
  return values;
}

describe('what is read', () => {
  const members = Buffer.concat(RECORDS.map((record) => gzipSync(`${JSON.stringify(record)}\n`)));
  test.each<[string, string, string | Uint8Array]>([
    ['JSON lines with a byte order mark', 'a.jsonl', MARK + LINES],
    ['a mark at each line, as files put together have it', 'a.jsonl', MARK + LINES.replace('\n', `\n${MARK}`)],
    ['an array with a byte order mark', 'a.json', MARK + ARRAY],
    ['lines of Windows', 'a.ndjson', LINES.replace('\n', '\r\n')],
    ['empty lines, white space around', 'a.jsonl', `\n  ${LINES.replace('\n', ' \n\n\t\n')}\n \n`],
    ['JSON lines in a .json file', 'a.json', LINES],
    ['an array in one line', 'a.json', ` \n${JSON.stringify(RECORDS)}\n\n`],
    ['gzip of JSON lines', 'a.jsonl.gz', gzipSync(LINES)],
    ['gzip of an array with a byte order mark', 'a.json.gz', gzipSync(MARK + ARRAY)],
    ['gzip without the ending', 'a.jsonl', gzipSync(LINES)],
    ['gzip of several members', 'a.jsonl.gz', members],
    ['text with the ending of gzip', 'a.jsonl.gz', LINES],
  ])('%s', async (_what, name, content) => {
    expect(await read(file(name, content))).toEqual(RECORDS);
  });

  test('a pointer of Git LFS in the place of a file says so', async () => {
    const pointer = `version https://git-lfs.github.com/spec/v1\noid sha256:${'7c'.repeat(32)}\nsize 734003200\n`;
    for (const name of ['a.jsonl', 'a.json', 'a.jsonl.gz', 'a.parquet'])
      await expect(read(file(name, pointer))).rejects.toMatchObject({
        code: 'BAD_DATASET',
        message: expect.stringMatching(
          new RegExp(
            `${name}: a Git LFS pointer, not the file itself; "git lfs pull" in its repository fetches the file$`,
          ),
        ),
      });
  });

  test('an array of everything that JSON has, cut where its entries end', async () => {
    const values = [1, -2.5e3, true, null, 'a,]}"\\', [], [[1, 2], [{}]], {}, { a: [{ b: '}' }], 'c,': { d: [','] } }];
    for (const space of [0, 1, 4])
      expect(await read(file('a.json', JSON.stringify(values, null, space)))).toEqual(values);
    for (const empty of ['[]', ' [ \n ] ']) expect(await read(file('a.json', empty))).toEqual([]);
  });

  test('records that reach over many pieces of the file', async () => {
    const long = Array.from({ length: 5 }, (_, i) => ({ text: 'ä€𝄞'.repeat(100_000 + i), i }));
    expect(await read(file('a.json', JSON.stringify(long)))).toEqual(long);
    expect(await read(file('a.jsonl.gz', gzipSync(long.map((record) => JSON.stringify(record)).join('\n'))))).toEqual(
      long,
    );
  });

  test('of a folder, packed files of one format', () => {
    const names = ['a/train.jsonl.gz', 'a/test.jsonl', 'a/test.jsonl.gz', 'a/train.csv', 'test.json.gz'];
    expect(filesOfSplit(names, 'train', null)).toEqual(['a/train.jsonl.gz']);
    expect(filesOfSplit(names, 'test', 'a')).toEqual(['a/test.jsonl']);
  });

  exceptOnWindows('it has no files with holes by default')(
    'lines and entries of a file that no string could hold',
    async () => {
      // 34 records of 16 MiB.
      const record = JSON.stringify({ question: 'x'.repeat(2 ** 24), answer: '#### 1' });
      for (const [name, open, between, close] of [
        ['a.jsonl', '', '\n', '\n'],
        ['a.json', '[', ',', ']'],
      ]) {
        const full = path.join(temporaryFolder(), name);
        const handle = openSync(full, 'w');
        for (let i = 0; i < 34; i++) writeSync(handle, `${i === 0 ? open : between}${record}`);
        writeSync(handle, close);
        closeSync(handle);
        let count = 0;
        for await (const { value } of readRecords(full))
          count += (value as { answer: string }).answer === '#### 1' ? 1 : 0;
        expect(count).toBe(34);
      }
    },
    60_000,
  );
});

describe('what is refused, by file and line', () => {
  const latin1 = Buffer.from(LINES.replace('日本', 'Rio'), 'latin1');
  const packed = gzipSync(`${LINES}\n`.repeat(40));
  const broken = Buffer.from(packed);
  broken[broken.length >> 1] ^= 0x55;
  const foreign = { zip: '504b0304', zstd: '28b52ffd', xz: 'fd377a585a00', bzip2: '425a6839' };
  test.each<[string, string, string | Uint8Array, string]>([
    ['Latin-1', 'a.jsonl', latin1, 'a.jsonl, line 2: expected UTF-8 text, got the byte 0xEB (Latin-1'],
    [
      'Latin-1 in an array',
      'a.json',
      Buffer.from(ARRAY.replace('日本', ''), 'latin1'),
      'a.json, line 7: expected UTF-8',
    ],
    [
      'UTF-16 with a mark',
      'a.jsonl',
      Buffer.from(MARK + LINES, 'utf16le'),
      'a.jsonl, line 1: expected UTF-8 text, got UTF-16',
    ],
    [
      'UTF-16 of the other order',
      'a.json',
      Buffer.from(MARK + ARRAY, 'utf16le').swap16(),
      'a.json, line 1: expected UTF-8 text, got UTF-16',
    ],
    [
      'UTF-16 without a mark',
      'a.jsonl',
      Buffer.from(LINES, 'utf16le'),
      'a.jsonl, line 1: expected UTF-8 text, got UTF-16, or',
    ],
    [
      'UTF-16 in gzip',
      'a.jsonl.gz',
      gzipSync(Buffer.from(LINES, 'utf16le')),
      'a.jsonl.gz, line 1: expected UTF-8 text',
    ],
    ['zeros', 'a.jsonl', Buffer.alloc(1000), 'a.jsonl, line 1: expected UTF-8 text, got binary data'],
    [
      'a byte 0 in text',
      'a.jsonl',
      `${LINES}\n{"a": "\0"}`,
      'a.jsonl, line 3: expected UTF-8 text, got binary data (a byte 0) at byte 8',
    ],
    [
      'half a character',
      'a.jsonl',
      Buffer.from(`${LINES}\n"日本"`).subarray(0, -2),
      'a.jsonl, line 3: expected UTF-8 text, got the byte 0xE6',
    ],
    ['gzip cut off', 'a.jsonl.gz', packed.subarray(0, -20), 'a.jsonl.gz: expected a whole gzip file, got a damaged'],
    ['gzip damaged', 'a.jsonl.gz', broken, 'a.jsonl.gz: expected a whole gzip file, got a damaged'],
    [
      'Parquet by another name',
      'a.jsonl',
      'PAR1....PAR1',
      'a.jsonl: expected JSON lines, a JSON array or gzip of them, got Parquet, whose',
    ],
    [
      'something behind gzip',
      'a.jsonl.gz',
      Buffer.concat([packed, Buffer.from('more')]),
      'a.jsonl.gz: expected a whole gzip',
    ],
    ...Object.entries(foreign).map(([name, head]): [string, string, Uint8Array, string] => [
      name,
      'a.jsonl',
      Buffer.from(head, 'hex'),
      `a.jsonl: expected JSON lines, a JSON array or gzip of them, got a ${name === 'zip' ? 'zip archive' : `file packed by ${name}`}`,
    ]),
    [
      'a table',
      'a.jsonl',
      `${MARK}question,answer\n"x",1\n`,
      "a.jsonl, line 1: expected JSON, got Unexpected token 'q'",
    ],
    ['one object in many lines', 'a.jsonl', '{\n"a": 1\n}', 'a.jsonl, line 1: expected JSON, got '],
    [
      'no end of the array',
      'a.json',
      '[{"a": 1},\n{"a": 2}',
      'a.json, line 2: expected "]" at the end of the array, got the end of the file',
    ],
    ['another end', 'a.json', '[{"a": 1}\n}', 'a.json, line 2: expected "]" at the end of the array, got "}"'],
    ['more behind the array', 'a.json', '[1]\n[2]', 'a.json, line 2: expected nothing behind the array, got more'],
    ['a comma too many', 'a.json', '[1,\n2,\n]', 'a.json, entry 3 (line 3): expected JSON, got Unexpected end'],
    ['damage in an entry', 'a.json', '[1,\n\n{"a": tru}\n]', 'a.json, entry 2 (line 3): expected JSON, got '],
  ])('%s', async (_what, name, content, message) => {
    const full = file(name, content);
    const failed = read(full);
    await expect(failed).rejects.toMatchObject({ name: 'DUltraError', code: 'BAD_DATASET' });
    const error = (await failed.catch((reason: Error) => reason)) as Error;
    expect(error.message).toContain(message);
    expect(error.message.startsWith(message.split(/[,:]/, 1)[0])).toBe(true);
    expect(error.message.length).toBeLessThan(250);
    expect(error.message).not.toMatch(/[\0\ufffd\ufeff]/);
  });

  test('a line without end', async () => {
    const full = path.join(temporaryFolder(), 'a.jsonl');
    const handle = openSync(full, 'w');
    for (let i = 0; i < 17; i++) writeSync(handle, Buffer.alloc(2 ** 24, 'a'));
    closeSync(handle);
    await expect(read(full)).rejects.toThrow('a.jsonl, line 1: expected at most 268435456 bytes in a record, got more');
  });

  test('a folder that is no file, a file that is not there', async () => {
    await expect(read(path.join(temporaryFolder(), 'gone.jsonl'))).rejects.toThrow(/gone\.jsonl: ENOENT/);
  });
});

test('text of bytes: exact, without its mark, or refused', () => {
  expect(decodeText(Buffer.from(`${MARK}aé${MARK}\ufffd`), 'stdin')).toBe(`aé${MARK}\ufffd`);
  expect(decodeText(new Uint8Array(0), 'stdin')).toBe('');
  expect(decodeText(Buffer.from('xxabcxx').subarray(2, 5), 'stdin')).toBe('abc');
  expect(() => decodeText(Buffer.from('ok \ufffd\nfine\nna\xefve', 'latin1'), 'x')).toThrow(/^x, line 1:/);
  expect(() => decodeText(Buffer.concat([Buffer.from('\ufffd\nfine\nna'), Buffer.from([0xef, 0x76])]), 'x')).toThrow(
    'x, line 3: expected UTF-8 text, got the byte 0xEF (Latin-1 or Windows-1252?) at byte 3',
  );
});

describe('fields of records', () => {
  const open = async (name: datasets.BenchmarkName, record: object) =>
    (await datasets.openBenchmark(name, { source: file('a.jsonl', JSON.stringify(record)), splits: ['test'] })).finite!
      .test![0];
  const needed = {
    gsm8k: { question: 'q', answer: '#### 1' },
    math500: { problem: 'p', answer: '1' },
    dapo17k: { prompt: 'p', solution: '1' },
    humaneval: { prompt: 'def f():', entry_point: 'f', test: 'def check(f): pass' },
    mbpp: { text: 't', test_list: ['assert True'] },
    'mbpp-sanitized': { prompt: 't', test_list: ['assert True'] },
    apps: { question: 'q', input_output: '{"inputs": ["1"], "outputs": ["2"]}', difficulty: 'introductory' },
  };
  const optional = {
    math500: ['solution', 'subject', 'unique_id'],
    humaneval: ['task_id', 'canonical_solution'],
    mbpp: ['task_id', 'code', 'test_setup_code'],
    'mbpp-sanitized': ['task_id', 'code', 'test_imports'],
    apps: ['problem_id', 'starter_code', 'solutions'],
  };

  test.each(Object.keys(optional) as (keyof typeof optional)[])('%s: null is as if it were not there', async (name) => {
    const nulls = Object.fromEntries(optional[name].map((field) => [field, null]));
    const plain = await open(name, needed[name]);
    expect(await open(name, { ...needed[name], ...nulls })).toEqual(plain);
    const columns = Object.entries({ ...needed[name], ...nulls }).map(([field, value]) => ({
      name: field,
      data: [value],
      ...(value === null && { type: 'STRING' as const, nullable: true }),
    }));
    const source = file('a.parquet', Buffer.from(parquetWriteBuffer({ columnData: columns as never })));
    const isText = Object.values(needed[name]).every((value) => typeof value === 'string');
    if (isText)
      expect((await datasets.openBenchmark(name, { source, splits: ['test'] })).finite!.test![0]).toEqual(plain);
  });

  test('math500: an answer of null leaves the solution to give it; problems of APPS without tests are left out', async () => {
    const record = { problem: 'p', answer: null, solution: 'So \\boxed{7}.' };
    expect((await open('math500', record)).meta).toMatchObject({ gold: '7' });
    const lines = [{ ...needed.apps, input_output: null }, needed.apps].map((line) => JSON.stringify(line)).join('\n');
    const { finite } = await datasets.openBenchmark('apps', { source: file('a.jsonl', lines), splits: ['test'] });
    expect(finite!.test).toHaveLength(1);
  });

  test.each([
    ['gsm8k', { question: 'q', answer: 18 }, '18'],
    ['math500', { problem: 'p', answer: -0.5 }, '-0.5'],
    ['dapo17k', { prompt: 'p', solution: 9007199254740991 }, '9007199254740991'],
  ] as const)('%s: a number as answer', async (name, record, gold) => {
    expect((await open(name, record)).meta).toMatchObject({ gold });
  });

  test.each<[datasets.BenchmarkName, object, string]>([
    ['gsm8k', { question: 'q', answer: 'Thus\n#### ' }, 'field "answer": expected an answer behind "####", got none'],
    ['gsm8k', { question: 'q', answer: '####' }, 'field "answer": expected an answer behind "####", got none'],
    ['gsm8k', { question: ' \n', answer: '#### 1' }, 'field "question": expected a problem, got none'],
    ['gsm8k', { question: 'q', answer: true }, 'field "answer": expected string, got boolean'],
    ['gsm8k', { question: null, answer: '#### 1' }, 'field "question": expected string, got null'],
    ['math500', { problem: 'p', answer: ' ' }, 'field "answer": expected an answer, got none'],
    ['dapo17k', { prompt: 'p', solution: '' }, 'field "solution": expected an answer, got none'],
    ['mbpp', { text: 't', test_list: [' '] }, 'field "test_list": expected tests, got none'],
    ['mbpp', { text: 't', test_list: null }, 'field "test_list": expected array, got null'],
    ['humaneval', { ...needed.humaneval, test: '' }, 'field "test": expected text, got none'],
    ['apps', { ...needed.apps, question: '' }, 'field "question": expected a problem, got none'],
  ])('%s: %j is refused', async (name, record, message) => {
    await expect(open(name, record)).rejects.toThrow(`a.jsonl, line 1: ${message}`);
  });

  test('a number that JSON does not keep is no answer', async () => {
    const source = file('a.jsonl', '{"problem": "p", "answer": 12345678901234567890}');
    await expect(datasets.openBenchmark('math500', { source, splits: ['test'] })).rejects.toThrow(
      'a.jsonl, line 1: field "answer": expected text for a number of more than 15 digits, got number',
    );
  });
});
