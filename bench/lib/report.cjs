// Results as files: <name>.json with everything, <name>.md with the tables.
const { mkdirSync, writeFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const number = (value) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));
const times = (ratio) => (ratio === undefined ? '' : `${ratio.toFixed(2)}×`);

/** A Markdown table of a head and rows of cells. */
function markdownTable(head, rows) {
  const line = (cells) => `| ${cells.join(' | ')} |`;
  return [line(head), `|${' --- |'.repeat(head.length)}`, ...rows.map(line)].join('\n');
}

function table(rows) {
  const { reference } = rows[0];
  const hasCpu = rows.some((row) => row.cpu !== undefined);
  const hasNote = rows.some((row) => row.note);
  const head = ['shape', 'threads', 'contender', 'median (p10–p90)', 'runs'];
  if (hasCpu) head.push('CPU ms');
  if (reference) head.push(`times ${reference}`);
  if (reference && hasCpu) head.push('by CPU time');
  if (hasNote) head.push('');
  const lines = rows.map((row) => {
    const spread = row.p10 === undefined ? '' : ` (${number(row.p10)}–${number(row.p90)})`;
    const cells = [row.shape, row.threads, row.contender, `${number(row.median)}${spread} ${row.unit}`, row.runs ?? 1];
    if (hasCpu) cells.push(number(row.cpu));
    if (reference) cells.push(times(row.ratio));
    if (reference && hasCpu) cells.push(times(row.cpuRatio));
    if (hasNote) cells.push(row.note ?? '');
    return cells;
  });
  return markdownTable(head, lines);
}

/** Facts about where the numbers come from. */
function machine(info) {
  const cpus = os.cpus();
  return {
    cpu: `${cpus.length} × ${cpus[0]?.model.trim() ?? os.arch()}`,
    memoryGB: Math.round(os.totalmem() / 2 ** 30),
    system: `${os.type()} ${os.release()} ${os.arch()}`,
    node: process.version,
    ...info,
  };
}

function markdown({ machine: at, command, loads, sections }) {
  const facts = Object.entries(at).map(([name, value]) => `${name}: ${value}`);
  const lines = [
    '# dultra benchmark',
    '',
    `\`${command}\`, ${at.date}`,
    '',
    `${facts.join(' · ')}`,
    '',
    `Load average (1 min) before each case: ${number(Math.min(...loads))} to ${number(Math.max(...loads))}. See ../README.md for what is measured and how.`,
  ];
  for (const { title, rows } of sections) lines.push('', `## ${title}`, '', table(rows));
  return `${lines.join('\n')}\n`;
}

/**
 * Writes both files into `folder`; returns their common path without extension. `part` names what a partial run
 * measured.
 */
function writeReport(folder, result, part) {
  mkdirSync(folder, { recursive: true });
  const base = path.join(folder, [result.machine.date, result.machine.device, part].filter(Boolean).join('-'));
  writeFileSync(`${base}.json`, `${JSON.stringify(result, null, 1)}\n`);
  writeFileSync(`${base}.md`, markdown(result));
  return base;
}

module.exports = { machine, markdownTable, table, writeReport };
