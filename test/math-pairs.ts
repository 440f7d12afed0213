// Pairs of mathematical answers whose truth is known by construction, from a seed. Each kind computes with whole numbers
// of its own and writes the same thing in two ways, or two things that differ.
import { Random } from '../lib/random';

/** Two answers. */
export type Pair = readonly [string, string];
/** The makers of equal and of different pairs of a kind. */
export interface Kind {
  equal: (random: Dice) => Pair;
  different: (random: Dice) => Pair;
}

/** Random choices. */
export class Dice {
  readonly #random: Random;
  constructor(seed: number) {
    this.#random = new Random(BigInt(seed));
  }
  /** From low to high, both included. */
  int(low: number, high: number): number {
    return low + Math.floor(this.#random.uniform() * (high - low + 1));
  }
  /** Not 0. */
  some(size: number): number {
    const value = this.int(1, size);
    return this.coin() ? value : -value;
  }
  coin(): boolean {
    return this.#random.uniform() < 0.5;
  }
  pick<T>(list: readonly T[]): T {
    return list[this.int(0, list.length - 1)];
  }
  shuffle<T>(list: readonly T[]): T[] {
    const rest = [...list];
    for (let i = rest.length - 1; i > 0; i--) {
      const j = this.int(0, i);
      [rest[i], rest[j]] = [rest[j], rest[i]];
    }
    return rest;
  }
}

const gcd = (a: number, b: number): number => (b === 0 ? Math.abs(a) : gcd(b, a % b));

// ---- numbers

/** p / q in one of its notations. */
function fraction(d: Dice, p: number, q: number): string {
  const k = d.pick([1, 1, 2, 3, 7]);
  const sign = p < 0 ? '-' : '';
  const [a, b] = [Math.abs(p) * k, q * k];
  const g = gcd(a, b);
  if (b === g && d.coin()) return String((sign === '-' ? -1 : 1) * (a / b));
  return d.pick([
    `${sign}\\frac{${a}}{${b}}`,
    `${sign}\\dfrac{${a}}{${b}}`,
    `${sign}${a}/${b}`,
    `\\frac{${sign}${a}}{${b}}`,
    `${sign}${a} / ${b}`,
    `${sign}${a}÷${b}`,
    `${sign}\\left(\\frac{${a}}{${b}}\\right)`,
    `$${sign}\\tfrac{${a}}{${b}}$`,
    ...(a < 10 && b < 10 ? [`${sign}\\frac${a}${b}`] : []),
  ]);
}

/** digits / 10^places in one of its notations. */
function decimal(d: Dice, digits: number, places: number): string {
  const text = String(Math.abs(digits)).padStart(places + 1, '0');
  const sign = digits < 0 ? '-' : '';
  const whole = text.slice(0, text.length - places);
  const part = text.slice(text.length - places);
  return d.pick([
    `${sign}${whole}.${part}`,
    `${sign}${whole}.${part}${'0'.repeat(d.int(1, 3))}`,
    `${sign}\\frac{${Math.abs(digits)}}{${10 ** places}}`,
    `${digits}/${10 ** places}`,
    `${digits}\\times 10^{-${places}}`,
    `${digits}e-${places}`,
    `${digits} * 10^-${places}`,
    ...(whole === '0' ? [`${sign}.${part}`] : []),
    ...(places >= 2 ? [`${sign}${whole}${part.slice(0, 2)}${places > 2 ? '.' : ''}${part.slice(2)}\\%`] : []),
  ]);
}

const SEPARATORS = [',', '{,}', ',\\!', ',\\! ', '\\,', '\\;', '\\ ', '\\:', '~', ' ', '\u2009', '\u202f', '\u00a0'];
const grouped = (n: number, separator: string) => String(n).replace(/\B(?=(\d{3})+(?!\d))/g, separator);
const LIST_SEPARATORS = SEPARATORS.filter((separator) => separator !== ',');

const POLYNOMIAL_VARIABLES = ['x', 'y', 't', 'n', 'a', 'z'];
/** A polynomial from its coefficients, constant first. */
function polynomial(d: Dice, coefficients: readonly number[], x: string): string {
  const power = (k: number) => {
    if (k === 0) return '';
    if (k === 1) return x;
    return d.pick([`${x}^${k}`, `${x}^{${k}}`, `${x}**${k}`]);
  };
  const terms = coefficients.flatMap((c, k) => {
    if (c === 0) return [];
    const size = Math.abs(c) === 1 && k > 0 ? '' : String(Math.abs(c));
    return [
      { sign: c < 0 ? '-' : '+', text: `${size}${size && k > 0 ? d.pick(['', '', '*', '\\cdot ']) : ''}${power(k)}` },
    ];
  });
  if (terms.length === 0) return '0';
  const ordered = d.coin() ? d.shuffle(terms) : [...terms].reverse();
  const gap = d.pick(['', ' ']);
  return ordered
    .map(({ sign, text }, i) => (i === 0 ? (sign === '-' ? `-${text}` : text) : `${gap}${sign}${gap}${text}`))
    .join('');
}
/** Coefficients of the product of linear factors (x + r). */
const expand = (roots: readonly number[], lead: number): number[] =>
  roots.reduce(
    (all, r) => {
      const next = new Array<number>(all.length + 1).fill(0);
      all.forEach((c, k) => {
        next[k] += c * r;
        next[k + 1] += c;
      });
      return next;
    },
    [lead],
  );
const factor = (x: string, r: number) => (r === 0 ? x : `(${x}${r < 0 ? '-' : '+'}${Math.abs(r)})`);
function factored(d: Dice, roots: readonly number[], lead: number, x: string): string {
  const times = d.pick(['', '', '*', '\\cdot ']);
  const head = lead === 1 ? '' : lead === -1 ? '-' : `${lead}${times}`;
  return (
    head +
    d
      .shuffle(roots)
      .map((r) => factor(x, r))
      .join(times)
  );
}

/** √n written out: a√b. */
function surd(d: Dice, a: number, b: number): string {
  const sign = a < 0 ? '-' : '';
  const s = Math.abs(a);
  return d.pick([
    `${sign}${s}\\sqrt{${b}}`,
    `${sign}\\sqrt{${s * s * b}}`,
    `${sign}\\frac{${s * b}}{\\sqrt{${b}}}`,
    `${sign}${s}*sqrt(${b})`,
    `${sign}sqrt(${s * s * b})`,
    `${sign}${s}√${b}`,
    `${sign}${s}\\cdot ${b}^{1/2}`,
    `${sign}${s}\\cdot ${b}^{\\frac{1}{2}}`,
    `${sign}\\sqrt{${b}}\\cdot ${s}`,
  ]);
}

// ---- expressions as trees, written in LaTeX and in plain text

type Tree =
  | { op: 'number'; value: number }
  | { op: 'name'; name: string }
  | { op: '+' | '-' | '*' | '/'; a: Tree; b: Tree }
  | { op: 'pow'; a: Tree; k: number }
  | { op: 'sqrt' | 'abs' | 'sin' | 'exp'; a: Tree };

function tree(d: Dice, depth: number): Tree {
  if (depth === 0 || d.int(0, 5) === 0)
    return d.coin() ? { op: 'number', value: d.int(1, 9) } : { op: 'name', name: d.pick(['x', 'y', 'π']) };
  const op = d.pick(['+', '-', '*', '/', '+', '*', 'pow', 'sqrt', 'abs', 'sin', 'exp'] as const);
  const a = tree(d, depth - 1);
  if (op === 'pow') return { op, a, k: d.int(2, 4) };
  if (op === 'sqrt' || op === 'abs' || op === 'sin' || op === 'exp') return { op, a };
  return { op, a, b: tree(d, depth - 1) };
}
const atom = (t: Tree) => t.op === 'number' || t.op === 'name';
function latex(t: Tree): string {
  const inner = (s: Tree) => (atom(s) ? latex(s) : `\\left(${latex(s)}\\right)`);
  switch (t.op) {
    case 'number':
      return String(t.value);
    case 'name':
      return t.name === 'π' ? '\\pi ' : t.name;
    case '+':
    case '-':
      return `${latex(t.a)} ${t.op} ${inner(t.b)}`;
    case '*':
      return `${inner(t.a)}\\cdot ${inner(t.b)}`;
    case '/':
      return `\\frac{${latex(t.a)}}{${latex(t.b)}}`;
    case 'pow':
      return `${inner(t.a)}^{${t.k}}`;
    case 'sqrt':
      return `\\sqrt{${latex(t.a)}}`;
    case 'abs':
      return `\\left|${latex(t.a)}\\right|`;
    case 'sin':
      return `\\sin\\left(${latex(t.a)}\\right)`;
    case 'exp':
      return `e^{${latex(t.a)}}`;
  }
}
function plain(t: Tree): string {
  const inner = (s: Tree) => (atom(s) ? plain(s) : `(${plain(s)})`);
  switch (t.op) {
    case 'number':
      return String(t.value);
    case 'name':
      return t.name === 'π' ? 'pi' : t.name;
    case '+':
    case '-':
      return `${plain(t.a)}${t.op}${inner(t.b)}`;
    case '*':
      return `${inner(t.a)}*${inner(t.b)}`;
    case '/':
      return `${inner(t.a)}/${inner(t.b)}`;
    case 'pow':
      return `${inner(t.a)}**${t.k}`;
    case 'exp':
      return `exp(${plain(t.a)})`;
    default:
      return `${t.op}(${plain(t.a)})`;
  }
}
function treeValue(t: Tree, values: Readonly<Record<string, number>>): number {
  const of = (s: Tree) => treeValue(s, values);
  switch (t.op) {
    case 'number':
      return t.value;
    case 'name':
      return values[t.name];
    case '+':
      return of(t.a) + of(t.b);
    case '-':
      return of(t.a) - of(t.b);
    case '*':
      return of(t.a) * of(t.b);
    case '/':
      return of(t.a) / of(t.b);
    case 'pow':
      return of(t.a) ** t.k;
    case 'sqrt':
      return Math.sqrt(of(t.a));
    case 'abs':
      return Math.abs(of(t.a));
    case 'sin':
      return Math.sin(of(t.a));
    case 'exp':
      return Math.exp(of(t.a));
  }
}
const VALUES = [
  { x: 0.37, y: 1.93, π: Math.PI },
  { x: 1.21, y: 0.58, π: Math.PI },
];
/** A tree with values that floating-point numbers hold. */
function usableTree(d: Dice): Tree {
  for (;;) {
    const t = tree(d, 3);
    const values = VALUES.map((at) => treeValue(t, at));
    if (values.every((value) => Number.isFinite(value) && Math.abs(value) < 1e6 && Math.abs(value) > 1e-6)) return t;
  }
}
const differ = (a: Tree, b: Tree) =>
  VALUES.some((at) => {
    const [x, y] = [treeValue(a, at), treeValue(b, at)];
    return Math.abs(x - y) > 1e-6 * Math.max(Math.abs(x), Math.abs(y));
  });

// ---- units

const UNITS: readonly (readonly [dimension: string, factor: number, names: readonly string[]])[] = [
  ['length', 1, ['mm', '\\text{ mm}', '\\text{ millimeters}']],
  ['length', 10, ['cm', '\\text{ cm}', '\\,\\mathrm{cm}', ' centimeters']],
  ['length', 1000, ['m', '\\text{ m}', ' meters', '\\text{ meter}']],
  ['length', 1_000_000, ['km', '\\text{ km}', ' kilometers']],
  ['mass', 1, ['g', '\\text{ g}', ' grams']],
  ['mass', 1000, ['kg', '\\text{ kg}', '\\mathrm{~kg}', ' kilograms']],
  ['time', 1, ['s', '\\text{ s}', ' seconds']],
  ['time', 60, ['min', '\\text{ minutes}', ' min']],
  ['time', 3600, ['h', '\\text{ hours}', ' hr', '\\text{ h}']],
  ['volume', 1, ['mL', ' ml', '\\text{ milliliters}']],
  ['volume', 1000, ['L', '\\text{ L}', ' liters']],
  ['apples', 1, [' apples', '\\text{ apples}']],
  ['area', 1, ['cm^2', '\\text{ cm}^2', ' square centimeters', 'cm²', '\\,\\mathrm{cm}^{2}']],
  ['area', 10_000, [' m^2', '\\text{ m}^2', ' square meters', ' sq m']],
  ['speed', 1, ['\\text{ km/h}', ' km/h', ' kilometers per hour', '\\,\\mathrm{km/h}']],
  ['angle', 1, ['^\\circ', '°', '^{\\circ}', ' degrees', '\\text{ degrees}']],
  ['temperature', 1, ['^\\circ\\text{C}', '°C', '^{\\circ}C']],
  ['percent', 1, ['%', '\\%', ' percent']],
];
const quantity = (d: Dice, value: number, unit: (typeof UNITS)[number]) => {
  const name = d.pick(unit[2]);
  // One letter is a unit behind white space alone.
  return `${value}${/^[a-zA-Z](?![a-zA-Z])/.test(name) ? ' ' : ''}${name}`;
};
const CURRENCIES = ['\\$', '€', '£', '¥'];

// ---- the kinds

const number = (d: Dice) => d.some(60);
const distinct = (d: Dice, count: number, size: number): number[] => {
  const found = new Set<number>();
  while (found.size < count) found.add(d.some(size));
  return [...found];
};
const list = (d: Dice, values: readonly number[]): string => {
  const texts = d.shuffle(values).map((value) => fraction(d, value, 1));
  return d.pick([
    texts.join(', '),
    texts.join('; '),
    `\\{${texts.join(', ')}\\}`,
    `\\{${texts.join(',\\, ')}\\}`,
    `${texts.slice(0, -1).join(', ')}\\text{ and }${texts[texts.length - 1]}`,
    texts.join(' or '),
    texts.map((text) => `x=${text}`).join('\\text{ or }'),
    `x\\in\\{${texts.join(',')}\\}`,
  ]);
};
const tuple = (d: Dice, values: readonly number[]): string => {
  const texts = values.map((value) => fraction(d, value, d.pick([1, 1, 2, 3])));
  return texts.join(d.pick([', ', ',\\ ', ' , ']));
};
/** lower and upper end, with their brackets. */
interface Range {
  low: number;
  high: number;
  closed: readonly [boolean, boolean];
}
const range = (d: Dice): Range => {
  const low = d.int(-30, 30);
  return { low, high: low + d.int(1, 40), closed: [d.coin(), d.coin()] };
};
const interval = (d: Dice, { low, high, closed: [a, b] }: Range): string =>
  `${d.pick(['', '', 'x\\in '])}${a ? '[' : '('}${fraction(d, low, 1)}, ${fraction(d, high, 1)}${b ? ']' : ')'}`;
const inequality = (d: Dice, { low, high, closed: [a, b] }: Range): string => {
  const less = (closed: boolean) => (closed ? d.pick(['\\le ', '\\leq ', '<=', '≤']) : d.pick(['<', '\\lt ']));
  const more = (closed: boolean) => (closed ? d.pick(['\\ge ', '\\geq ', '>=', '≥']) : d.pick(['>', '\\gt ']));
  return d.coin() ? `${low}${less(a)}x${less(b)}${high}` : `${high}${more(b)}x${more(a)}${low}`;
};
const union = (d: Dice, left: number, right: number, closed: readonly [boolean, boolean]): string => {
  const parts = [`(-\\infty,${left}${closed[0] ? ']' : ')'}`, `${closed[1] ? '[' : '('}${right},\\infty)`];
  const sides = [`x${closed[0] ? '\\le ' : '<'}${left}`, `x${closed[1] ? '\\ge ' : '>'}${right}`];
  return d.coin() ? d.shuffle(parts).join(d.pick(['\\cup ', ' ∪ '])) : d.shuffle(sides).join('\\text{ or }');
};
/** ax + by + c = 0 in one of its notations, times k. */
const line = (d: Dice, [a, b, c]: readonly [number, number, number], k: number): string => {
  const [p, q, r] = [a * k, b * k, c * k];
  const signed = (value: number, text: string) =>
    `${value < 0 ? '-' : '+'}${Math.abs(value) === 1 && text ? '' : Math.abs(value)}${text}`;
  const first = `${p === 1 ? '' : p === -1 ? '-' : p}x`;
  return d.pick([
    `${first}${signed(q, 'y')}${r === 0 ? '' : signed(r, '')}=0`,
    `${first}${signed(q, 'y')}=${-r}`,
    `${first}=${-q}y${signed(-r, '')}`,
    `y=\\frac{${-p}x${signed(-r, '')}}{${q}}`,
    `0 = ${first}${signed(q, 'y')}${signed(r, '')}`,
  ]);
};
const matrix = (d: Dice, rows: readonly (readonly number[])[]): string => {
  const cells = rows.map((row) =>
    row.map((value) => fraction(d, value, 1).replaceAll('$', '')).join(d.pick(['&', ' & '])),
  );
  const end = d.pick(['', '\\\\', ' \\\\ ']);
  const body = cells.join(d.pick(['\\\\', ' \\\\ ', '\\\\[2pt]'])) + end;
  const columns = 'c'.repeat(rows[0].length);
  return d.pick([
    `\\begin{pmatrix}${body}\\end{pmatrix}`,
    `\\begin{bmatrix}${body}\\end{bmatrix}`,
    `\\left(\\begin{array}{${columns}}${body}\\end{array}\\right)`,
    `\\left[\\begin{matrix}${body}\\end{matrix}\\right]`,
  ]);
};
/** Multiples of 15° for which the sine is a√b/4 + c√e/4, as LaTeX, by the angle. */
const SINES: Readonly<Record<number, readonly string[]>> = {
  0: ['0'],
  15: ['\\frac{\\sqrt6-\\sqrt2}{4}', '(sqrt(6)-sqrt(2))/4', '\\frac{\\sqrt{2-\\sqrt{3}}}{2}'],
  30: ['\\frac12', '0.5', '1/2'],
  45: ['\\frac{\\sqrt2}{2}', '1/sqrt(2)', '\\sqrt{\\frac{1}{2}}'],
  60: ['\\frac{\\sqrt3}{2}', 'sqrt(3)/2', '\\sqrt{0.75}'],
  75: ['\\frac{\\sqrt6+\\sqrt2}{4}', '(sqrt(6)+sqrt(2))/4', '\\frac{\\sqrt{2+\\sqrt{3}}}{2}'],
  90: ['1'],
};
const sineOf = (angle: number): readonly string[] => {
  const turn = ((angle % 360) + 360) % 360;
  const half = turn % 180;
  const values = SINES[half > 90 ? 180 - half : half];
  return turn < 180
    ? values
    : values.map((value) =>
        value === '0' ? '0' : `-${value.includes('-') || value.includes('+') ? `(${value})` : value}`,
      );
};
/** Some multiple of 15° as LaTeX. */
const angle = (d: Dice, degrees: number): string => {
  const g = gcd(degrees, 180);
  const [n, m] = [degrees / g, 180 / g];
  return d.pick([
    `${degrees}^\\circ`,
    `${degrees}°`,
    m === 1 ? `${n}\\pi` : `\\frac{${n}\\pi}{${m}}`,
    m === 1 ? `${n}pi` : `${n}*pi/${m}`,
  ]);
};
const PRIMES = [2, 3, 5, 7, 11, 13];
const monomialLog = (d: Dice, exponents: readonly number[]): string => {
  const value = (sign: 1 | -1) =>
    exponents.reduce((all, k, i) => (k * sign > 0 ? all * PRIMES[i] ** Math.abs(k) : all), 1);
  const [above, below] = [value(1), value(-1)];
  const sum = exponents
    .flatMap((k, i) =>
      k === 0 ? [] : [`${k < 0 ? '-' : '+'}${Math.abs(k) === 1 ? '' : Math.abs(k)}\\ln ${PRIMES[i]}`],
    )
    .join('')
    .replace(/^\+/, '');
  return d.pick([
    below === 1 ? `\\ln ${above}` : `\\ln\\frac{${above}}{${below}}`,
    sum === '' ? '0' : sum,
    `\\ln{${above}}-\\ln{${below}}`,
    `-\\ln\\left(\\frac{${below}}{${above}}\\right)`,
    `ln(${above}/${below})`,
  ]);
};
const complex = (a: number, b: number) =>
  a === 0 ? (b === 0 ? '0' : `${b}i`) : b === 0 ? String(a) : `${a}${b < 0 ? '-' : '+'}${Math.abs(b)}i`;
const other = (d: Dice, value: number) => {
  const next = value + d.some(5);
  return next === 0 && value === 0 ? 1 : next;
};

export const KINDS: Readonly<Record<string, Kind>> = {
  fractions: {
    equal: (d) => {
      const [p, q] = [number(d), d.int(1, 40)];
      return [fraction(d, p, q), fraction(d, p, q)];
    },
    different: (d) => {
      const [p, q] = [number(d), d.int(1, 40)];
      const [r, s] = d.pick([
        [p + 1, q],
        [p, q + 1],
        [-p, q],
        [q, Math.abs(p)],
        [p + q, q],
      ]);
      return p * s === r * q ? KINDS.fractions.different(d) : [fraction(d, p, q), fraction(d, r, s)];
    },
  },
  decimals: {
    equal: (d) => {
      const [digits, places] = [d.some(99_999), d.int(1, 5)];
      return [decimal(d, digits, places), decimal(d, digits, places)];
    },
    different: (d) => {
      const [digits, places] = [d.some(99_999), d.int(1, 5)];
      const [more, less] = d.pick([
        [digits + 1, places],
        [digits - 1, places],
        [digits * 10 + 1, places + 1],
        [digits, places + 1],
      ]);
      // A percentage is also its number without the sign.
      const [a, b] = [decimal(d, digits, places), decimal(d, more, less)];
      return digits * 10 ** less === more * 10 ** places || /%/.test(a + b) ? KINDS.decimals.different(d) : [a, b];
    },
  },
  'rounded values': {
    equal: (d) => {
      const [p, q] = [d.int(1, 50), d.pick([3, 7, 9, 11, 13, 27, 37])];
      const whole = Math.floor(p / q);
      let digits = '';
      let rest = p % q;
      const seen: number[] = [];
      while (!seen.includes(rest)) {
        seen.push(rest);
        digits += Math.floor((rest * 10) / q);
        rest = (rest * 10) % q;
      }
      const at = seen.indexOf(rest);
      return [`${whole}.${digits.slice(0, at)}\\overline{${digits.slice(at)}}`, fraction(d, p, q)];
    },
    different: (d) => {
      const places = d.int(2, 12);
      const n = d.int(2, 99);
      const [value, exact] = d.pick([
        [Math.sqrt(n), `\\sqrt{${n}}`],
        [n / 7, `\\frac{${n}}{7}`],
        [n * Math.PI, `${n}\\pi`],
        [Math.log(n), `\\ln ${n}`],
        [Math.sin(n), `\\sin(${n})`],
        [Math.exp(n / 10), `e^{${n}/10}`],
      ]);
      return Number.isInteger(value) ? KINDS['rounded values'].different(d) : [value.toFixed(places), exact];
    },
  },
  thousands: {
    equal: (d) => {
      const n = d.int(1000, d.pick([9999, 999_999, 999_999_999]));
      if (d.coin()) {
        const m = d.int(1000, 99_999);
        const [a, b] = [d.pick(LIST_SEPARATORS), d.pick(LIST_SEPARATORS)];
        const brackets = d.pick([
          ['(', ')'],
          ['[', ']'],
          ['\\{', '\\}'],
          ['', ''],
        ]);
        return [
          `${brackets[0]}${grouped(n, a)}, ${grouped(m, b)}${brackets[1]}`,
          `${brackets[0]}${n}, ${d.coin() ? m : grouped(m, b)}${brackets[1]}`,
        ];
      }
      const money = d.pick(['', '', '\\$']);
      return [
        money + grouped(n, d.pick(SEPARATORS)),
        money + d.pick([String(n), `${n}.00`, grouped(n, d.pick(SEPARATORS))]),
      ];
    },
    different: (d) => {
      const n = d.int(1000, d.pick([9999, 999_999, 999_999_999]));
      const digits = String(n);
      const m = d.pick([
        n + 1,
        n * 10,
        n * 1000,
        Number([...digits].reverse().join('')),
        Number(digits.slice(0, -1)),
        n - 1000,
      ]);
      if (m === n) return KINDS.thousands.different(d);
      return [grouped(n, d.pick(SEPARATORS)), d.coin() ? String(m) : grouped(m, d.pick(SEPARATORS))];
    },
  },
  roots: {
    equal: (d) => {
      const [a, b] = [d.some(12), d.int(2, 30)];
      return [surd(d, a, b), surd(d, a, b)];
    },
    different: (d) => {
      const [a, b] = [d.some(12), d.int(2, 30)];
      const [c, e] = d.pick([
        [a + 1, b],
        [a, b + 1],
        [-a, b],
        [b, Math.abs(a)],
        [a * b, 1],
      ]);
      return c === 0 || e < 1 || a * Math.abs(a) * b === c * Math.abs(c) * e
        ? KINDS.roots.different(d)
        : [surd(d, a, b), surd(d, c, e)];
    },
  },
  'nested roots': {
    equal: (d) => {
      const [a, b] = [d.int(2, 20), d.int(2, 20)];
      const sum = `\\sqrt{${a}}+\\sqrt{${b}}`;
      return d.pick<Pair>([
        [`\\sqrt{${a + b}+2\\sqrt{${a * b}}}`, sum],
        [`\\sqrt{${a + b}+\\sqrt{${4 * a * b}}}`, sum],
        [`\\sqrt{${2 * a}+2\\sqrt{${a * a - 1}}}`, `\\sqrt{${a + 1}}+\\sqrt{${a - 1}}`],
        [`\\frac{1}{\\sqrt{${a + 1}}+\\sqrt{${a}}}`, `\\sqrt{${a + 1}}-\\sqrt{${a}}`],
        [`(${sum})^2`, `${a + b}+2\\sqrt{${a * b}}`],
        [`\\sqrt[3]{${a ** 3 + 3 * a * b}+${3 * a * a + b}\\sqrt{${b}}}`, `${a}+\\sqrt{${b}}`],
      ]);
    },
    different: (d) => {
      const [a, b] = [d.int(2, 20), d.int(2, 20)];
      return d.pick<Pair>([
        [`\\sqrt{${a + b}+2\\sqrt{${a * b + 1}}}`, `\\sqrt{${a}}+\\sqrt{${b}}`],
        [`\\sqrt{${a}}+\\sqrt{${b}}`, `\\sqrt{${a + b}}`],
        [`\\sqrt{${a}}-\\sqrt{${b + 20}}`, `\\sqrt{${a + b + 20}-2\\sqrt{${a * (b + 20)}}}`],
        [`\\frac{1}{\\sqrt{${a + 1}}+\\sqrt{${a}}}`, `\\sqrt{${a}}-\\sqrt{${a + 1}}`],
        [`\\sqrt{${a}+\\sqrt{${b}}}`, `\\sqrt{${a}}+\\sqrt[4]{${b}}`],
      ]);
    },
  },
  powers: {
    equal: (d) => {
      const [a, m, n] = [d.int(2, 9), d.int(2, 12), d.int(2, 9)];
      return d.pick<Pair>([
        [`${a}^${m}`, String(a ** m)],
        [`${a}^{${m}}`, `${a}**${m}`],
        [`(${a}^{${m}})^{${n}}`, `${a}^{${m * n}}`],
        [`${a}^{-${m}}`, `1/${a ** m}`],
        [`${a}^-${m}`, `\\frac{1}{${a}^{${m}}}`],
        [`${a}^{${m * 50}}`, `${a * a}^{${m * 25}}`],
        [`${a}^{n+${m}}`, `${a ** m}\\cdot ${a}^n`],
        [`${a ** n}^{${m}/${n}}`, String(a ** m)],
        [`x^{${m}}x^${n}`, `x^{${m + n}}`],
        [`(x^${m})^{${n}}`, `x**${m * n}`],
        [`e^{${m}}e^{${n}}`, `exp(${m + n})`],
        [`${a}^x\\cdot${n}^x`, `${a * n}^x`],
      ]);
    },
    different: (d) => {
      const [a, m, n] = [d.int(2, 9), d.int(2, 12), d.int(3, 9)];
      return d.pick<Pair>([
        [`${a}^${m}`, String(a ** m + d.some(3))],
        [`${a}^{${m}}`, `${a}^{${m + 1}}`],
        [`${a}^{${m * 200}}`, `${a}^{${m * 200 + 1}}`],
        [`${a}^{-${m * 200}}`, `${a}^{-${m * 200 + 1}}`],
        [`${a}^{-${m * 200}}`, '0'],
        [`e^{-${m * 300}}`, `e^{-${m * 300 + n}}`],
        [`\\frac{1}{10^{${m * 90}}}`, `\\frac{1}{10^{${m * 90 + 1}}}`],
        [`x^{${m}}`, `${m}x`],
        [`x^${m}${n}`, `x^{${m}}\\cdot ${n}`],
        [`${a}^{x+${m}}`, `${a}^x+${a ** m}`],
        [`(x+y)^${m}`, `x^${m}+y^${m}`],
        [`\\frac{1}{${m * 40}!}`, `\\frac{1}{${m * 40 + n}!}`],
      ]);
    },
  },
  polynomials: {
    equal: (d) => {
      const x = d.pick(POLYNOMIAL_VARIABLES);
      const roots = Array.from({ length: d.int(1, 4) }, () => d.int(-6, 6));
      const lead = d.some(4);
      const expanded = () => polynomial(d, expand(roots, lead), x);
      return [expanded(), d.coin() ? expanded() : factored(d, roots, lead, x)];
    },
    different: (d) => {
      const x = d.pick(POLYNOMIAL_VARIABLES);
      const roots = Array.from({ length: d.int(1, 4) }, () => d.int(-6, 6));
      const lead = d.some(4);
      const changed = expand(roots, lead);
      const at = d.int(0, changed.length - 1);
      changed[at] = other(d, changed[at]);
      return [
        polynomial(d, changed, x),
        d.coin() ? factored(d, roots, lead, x) : polynomial(d, expand(roots, lead), x),
      ];
    },
  },
  'rational functions': {
    equal: (d) => {
      const [a, b] = distinct(d, 2, 6);
      const [p, q] = [d.some(9), d.some(9)];
      const sum = `\\frac{${p}}{${factor('x', a)}}+\\frac{${q}}{${factor('x', b)}}`;
      const above = polynomial(d, [p * b + q * a, p + q], 'x');
      return d.pick<Pair>([
        [sum, `\\frac{${above}}{${factored(d, [a, b], 1, 'x')}}`],
        [sum, `(${above})/(${polynomial(d, expand([a, b], 1), 'x')})`],
        [
          `\\frac{${polynomial(d, expand([a, b], p), 'x')}}{${polynomial(d, [a, 1], 'x')}}`,
          polynomial(d, [p * b, p], 'x'),
        ],
      ]);
    },
    different: (d) => {
      const [a, b] = distinct(d, 2, 6);
      const [p, q] = [d.some(9), d.some(9)];
      const sum = `\\frac{${p}}{${factor('x', a)}}+\\frac{${q}}{${factor('x', b)}}`;
      return d.pick<Pair>([
        [sum, `\\frac{${polynomial(d, [p * b + q * a + d.some(3), p + q], 'x')}}{${factored(d, [a, b], 1, 'x')}}`],
        [sum, `\\frac{${p + q}}{${polynomial(d, [a + b, 2], 'x')}}`],
        [`\\frac{x}{x+${Math.abs(a)}}`, `1+\\frac{x}{${Math.abs(a)}}`],
      ]);
    },
  },
  trigonometry: {
    equal: (d) => {
      const degrees = 15 * d.int(0, 40);
      const [m, n] = [d.int(1, 4), d.int(1, 4)];
      return d.pick<Pair>([
        [`\\sin ${angle(d, degrees)}`.replace(/\\sin (\d+\*?pi.*)/, 'sin($1)'), d.pick(sineOf(degrees))],
        [`\\cos(${angle(d, degrees)})`, d.pick(sineOf(degrees + 90))],
        [`\\sin(${m}x+${n}y)`, `\\sin(${m}x)\\cos(${n}y)+\\cos(${m}x)\\sin(${n}y)`],
        [`\\cos(${m}x-${n}y)`, `\\cos(${n}y)\\cos(${m}x)+\\sin(${m}x)\\sin(${n}y)`],
        [`\\sin(${m}x)\\cos(${n}x)`, `\\frac{\\sin(${m + n}x)+\\sin(${m - n}x)}{2}`],
        [`\\sin^2(${m}x)`, `\\frac{1-\\cos(${2 * m}x)}{2}`],
        [`\\tan(${m}x)\\cos(${m}x)`, `\\sin(${m}x)`],
        [`\\arctan(\\sqrt{3})\\cdot ${m}`, `\\frac{${m}\\pi}{3}`],
      ]);
    },
    different: (d) => {
      const degrees = 15 * d.int(0, 40);
      const [m, n] = [d.int(1, 4), d.int(1, 4)];
      const off = 15 * d.int(1, 5);
      const same = sineOf(degrees)[0] === sineOf(degrees + off)[0];
      return d.pick<Pair>([
        same ? [`\\sin(${m}x)`, `\\sin(${m + 1}x)`] : [`\\sin(${angle(d, degrees)})`, d.pick(sineOf(degrees + off))],
        [`\\sin(${m}x+${n}y)`, `\\sin(${m}x)+\\sin(${n}y)`],
        [`\\cos(${m}x-${n}y)`, `\\cos(${n}y)\\cos(${m}x)-\\sin(${m}x)\\sin(${n}y)`],
        [`\\sin^2(${m}x)`, `\\frac{1+\\cos(${2 * m}x)}{2}`],
        [`\\sin(${m}x)`, `${m}\\sin x\\cos x+${n}`],
        [`\\sin ${m}`, `\\sin ${m}^\\circ`],
        [`\\arcsin(\\sin(${m}x))`, `${m}x`],
      ]);
    },
  },
  logarithms: {
    equal: (d) => {
      const exponents = PRIMES.slice(0, 4).map(() => d.int(-3, 3));
      const [b, k, m] = [d.int(2, 9), d.int(1, 6), d.int(2, 9)];
      return d.pick<Pair>([
        [monomialLog(d, exponents), monomialLog(d, exponents)],
        [monomialLog(d, exponents), monomialLog(d, exponents)],
        [`\\log_{${b}} ${b ** k}`, String(k)],
        [`\\log_${b} ${m}`, `\\frac{\\ln ${m}}{\\ln ${b}}`],
        [`e^{${k}\\ln ${b}}`, String(b ** k)],
        [`\\ln(e^{${k}}\\cdot ${b})`, `${k}+\\ln ${b}`],
        [`\\ln(${b}x)`, `\\ln x+\\ln ${b}`],
        [`${b}^{\\log_{${b}} ${m}}`, String(m)],
        [`\\ln(x^{${2 * k}})`, `${2 * k}\\ln|x|`],
      ]);
    },
    different: (d) => {
      const exponents = PRIMES.slice(0, 4).map(() => d.int(-3, 3));
      const changed = [...exponents];
      const at = d.int(0, 3);
      changed[at] = other(d, changed[at]);
      const [b, k, m] = [d.int(2, 9), d.int(1, 6), d.int(10, 19)];
      return d.pick<Pair>([
        [monomialLog(d, exponents), monomialLog(d, changed)],
        [`\\log_{${b}} ${m}`, `\\log_{${m}} ${b}`],
        [`\\ln(x+${b})`, `\\ln x+\\ln ${b}`],
        [`\\ln(x^{${2 * k}})`, `${2 * k}\\ln x`],
        [`\\log ${m}`, `\\ln ${m}`],
        [`\\ln ${b}\\cdot\\ln ${m}`, `\\ln ${b * m}`],
      ]);
    },
  },
  'lists and sets': {
    equal: (d) => {
      const values = distinct(d, d.int(2, 5), 30);
      return [list(d, values), list(d, values)];
    },
    different: (d) => {
      const values = distinct(d, d.int(3, 5), 30);
      const changed = [...values];
      if (d.coin()) changed.pop();
      else changed[d.int(0, changed.length - 1)] = 31 + d.int(0, 9);
      return [list(d, values), list(d, changed)];
    },
  },
  tuples: {
    equal: (d) => {
      const values = Array.from({ length: d.int(2, 4) }, () => number(d));
      const [open, close] = d.pick([
        ['(', ')'],
        ['\\left(', '\\right)'],
        ['\\langle ', '\\rangle'],
      ]);
      const texts = () => values.map((value) => fraction(d, value, 2)).join(d.pick([', ', ',\\ ', ' , ']));
      return [`${open}${texts()}${close}`, `${open}${texts()}${close}`];
    },
    different: (d) => {
      const values = distinct(d, d.int(2, 4), 30);
      const [head, ...rest] = values;
      const changed = d.pick([[...rest, head], [head + 1, ...rest], [...values, 1], values.map((value) => -value)]);
      const one = (list: readonly number[]) => `(${list.map((value) => fraction(d, value, 1)).join(', ')})`;
      return d.pick<Pair>([
        [one(values), one(changed)],
        [one(values), `[${tuple(d, values)}]`],
        [one(values), list(d, values)],
      ]);
    },
  },
  intervals: {
    equal: (d) => {
      if (d.coin()) {
        const of = range(d);
        return [d.coin() ? interval(d, of) : inequality(d, of), d.coin() ? interval(d, of) : inequality(d, of)];
      }
      const left = d.int(-20, 20);
      const closed = [d.coin(), d.coin()] as const;
      const right = left + d.int(1, 20);
      return [union(d, left, right, closed), union(d, left, right, closed)];
    },
    different: (d) => {
      const of = range(d);
      const changed = d.pick<Range>([
        { ...of, low: of.low - 1 },
        { ...of, high: of.high + 1 },
        { ...of, closed: [!of.closed[0], of.closed[1]] },
        { ...of, closed: [of.closed[0], !of.closed[1]] },
      ]);
      if (d.coin()) return [inequality(d, of), d.coin() ? interval(d, changed) : inequality(d, changed)];
      const closed = [d.coin(), d.coin()] as const;
      return [union(d, of.low, of.high, closed), d.coin() ? interval(d, of) : union(d, of.low, of.high + 1, closed)];
    },
  },
  equations: {
    equal: (d) => {
      const of = [d.some(9), d.some(9), d.some(9)] as const;
      return [line(d, of, d.some(4)), line(d, of, d.some(4))];
    },
    different: (d) => {
      const of = [d.some(9), d.some(9), d.some(9)] as const;
      const changed = [...of] as [number, number, number];
      const at = d.int(0, 2);
      changed[at] += changed[at] === -1 ? -1 : 1;
      return [line(d, of, d.some(4)), line(d, changed, d.some(4))];
    },
  },
  names: {
    equal: (d) => {
      const [p, q] = [number(d), d.int(1, 9)];
      const name = d.pick([
        'x',
        'y',
        'f(2)',
        'P(A)',
        '\\angle ABC',
        'AB',
        'a_{10}',
        'x_1',
        '\\theta',
        '\\text{Area}',
        'm\\angle B',
        'P(A\\cap B)',
        'S_n',
        'T',
      ]);
      const value = fraction(d, p, q);
      return d.pick<Pair>([
        [`${name} = ${value}`, fraction(d, p, q)],
        [`${name}=${value}`, `${name} = ${fraction(d, p, q)}`],
        [`${value}=${name}`, fraction(d, p, q)],
      ]);
    },
    different: (d) => {
      const [p, q] = [number(d), d.int(1, 9)];
      const value = fraction(d, p, q);
      return d.pick<Pair>([
        [`x=${value}`, `y=${value}`],
        [`P(A)=${value}`, `P(B)=${value}`],
        [`x=${value}`, fraction(d, p + q, q)],
        [`x^2=${value}`, value],
        [`x<${value}`, value],
        [`x=${value}`, `x=${fraction(d, p + 1, q)}`],
        [`x=${p}y`, `${p}`],
        [`x=x+${value}`, `x+${value}`],
      ]);
    },
  },
  'plus or minus': {
    equal: (d) => {
      const [a, b, c] = [number(d), d.int(2, 40), d.int(1, 6)];
      const both = [`${a}+${c}\\sqrt{${b}}`, `${a}-\\sqrt{${c * c * b}}`];
      const written = d.shuffle(both);
      return [
        d.pick([
          `${a}\\pm ${c}\\sqrt{${b}}`,
          `x=${a}\\pm\\sqrt{${c * c * b}}`,
          `${a} ± ${c}√${b}`,
          `\\frac{${2 * a}\\pm\\sqrt{${4 * c * c * b}}}{2}`,
        ]),
        d.pick([
          written.join(', '),
          written.join('\\text{ or }'),
          `\\{${written.join(',')}\\}`,
          written.map((value) => `x=${value}`).join(', '),
        ]),
      ];
    },
    different: (d) => {
      const [a, b] = [number(d), d.int(2, 40)];
      const root = `\\sqrt{${b}}`;
      return d.pick<Pair>([
        [`${a}\\pm ${root}`, `${a}+${root}`],
        [`${a}\\pm ${root}`, `${a}+${root}, ${a}-\\sqrt{${b + 1}}`],
        [`\\pm ${b}`, String(b)],
        [`\\pm ${b}`, `${b}, ${b}`],
        [`${a}\\pm ${root}`, `${-a}\\pm ${root}`],
      ]);
    },
  },
  'units and money': {
    equal: (d) => {
      const unit = d.pick(UNITS);
      const value = d.int(1, 400);
      if (d.int(0, 3) === 0) {
        const cents = d.int(1, 9999);
        const amount = `${Math.floor(cents / 100)}.${String(cents % 100).padStart(2, '0')}`;
        return d.pick<Pair>([
          [`\\$${amount}`, `${cents} cents`],
          [`$${amount}`, `${amount}\\text{ dollars}`],
          [`€${amount}`, `${amount} euros`],
          [`\\$${amount}`, amount],
        ]);
      }
      const related = UNITS.filter(([dimension, factor]) => dimension === unit[0] && factor <= unit[1]);
      const target = d.pick(related);
      return d.coin()
        ? [quantity(d, value, unit), String(value)]
        : [quantity(d, value, unit), quantity(d, (value * unit[1]) / target[1], target)];
    },
    different: (d) => {
      const unit = d.pick(UNITS);
      const value = d.int(1, 400);
      if (d.int(0, 3) === 0) {
        const [first, second] = d.shuffle(CURRENCIES);
        return d.pick<Pair>([
          [`${first}${value}`, `${second}${value}`],
          [`\\$${value}`, `${value} cents`],
          [`\\$${value}`, `${value}\\text{ cm}`],
        ]);
      }
      const target = d.pick(UNITS);
      const equal = unit[0] === target[0] && unit[1] === target[1];
      return [quantity(d, value, unit), quantity(d, equal ? value + 1 : value, target)];
    },
  },
  matrices: {
    equal: (d) => {
      const [h, w] = [d.int(1, 3), d.int(1, 3)];
      const rows = Array.from({ length: h }, () => Array.from({ length: w }, () => number(d)));
      return [matrix(d, rows), matrix(d, rows)];
    },
    different: (d) => {
      const [h, w] = [d.int(1, 3), d.int(2, 3)];
      const rows = Array.from({ length: h }, () => Array.from({ length: w }, () => number(d)));
      const changed = rows.map((row) => [...row]);
      changed[d.int(0, h - 1)][d.int(0, w - 1)] += 100;
      const transposed = rows[0].map((_value, k) => rows.map((row) => row[k]));
      const isSymmetric = JSON.stringify(rows) === JSON.stringify(transposed);
      return [matrix(d, rows), matrix(d, d.coin() || isSymmetric ? changed : transposed)];
    },
  },
  'mixed numbers': {
    equal: (d) => {
      const q = d.int(2, 20);
      const [whole, p] = [d.int(1, 30), d.int(1, q - 1)];
      const sign = d.pick(['', '', '-']);
      const mixed = d.pick([
        `${whole} ${p}/${q}`,
        `${whole}\\frac{${p}}{${q}}`,
        `${whole}\\ \\tfrac{${p}}{${q}}`,
        `${whole} \\dfrac{${p}}{${q}}`,
      ]);
      return [sign + mixed, fraction(d, (sign ? -1 : 1) * (whole * q + p), q)];
    },
    different: (d) => {
      const q = d.int(2, 20);
      const [whole, p] = [d.int(1, 30), d.int(1, q - 1)];
      const [a, b] = d.pick([
        [whole * p, q],
        [whole * q + p + 1, q],
        [-whole * q - p, q],
        [p, q],
        [10 * whole + p, q],
        [whole * q - p, q],
      ]);
      const mixed = d.pick([`${whole} ${p}/${q}`, `${whole}\\frac{${p}}{${q}}`]);
      return a * q === b * (whole * q + p) ? KINDS['mixed numbers'].different(d) : [mixed, fraction(d, a, b)];
    },
  },
  'complex numbers': {
    equal: (d) => {
      const [a, b, c, e] = [d.some(9), d.some(9), d.some(9), d.some(9)];
      const size = c * c + e * e;
      return d.pick<Pair>([
        [`(${complex(a, b)})(${complex(c, e)})`, complex(a * c - b * e, a * e + b * c)],
        [`\\frac{${complex(a, b)}}{${complex(c, e)}}`, `\\frac{${complex(a * c + b * e, b * c - a * e)}}{${size}}`],
        [`(${complex(a, b)})^2`, complex(a * a - b * b, 2 * a * b)],
        [`|${complex(c, e)}|`, `\\sqrt{${size}}`],
        [complex(a, b), `${b}i+${a}`.replace('+-', '-')],
        [`\\sqrt{-${a * a}}`, `${Math.abs(a)}i`],
        [`e^{\\frac{${3 * Math.abs(a)}\\pi i}{3}}`, a % 2 === 0 ? '1' : '-1'],
      ]);
    },
    different: (d) => {
      const [a, b, c, e] = [d.some(9), d.some(9), d.some(9), d.some(9)];
      return d.pick<Pair>([
        [`(${complex(a, b)})(${complex(c, e)})`, complex(a * c + b * e, a * e + b * c)],
        [complex(a, b), complex(a, -b)],
        [complex(a, b), complex(a, b + 20)],
        [`\\sqrt{-${a * a}}`, String(a)],
        [`|${complex(a, b)}|`, String(Math.abs(a) + Math.abs(b))],
        [complex(a, b), `(${a},${b})`],
      ]);
    },
  },
  'domains and signs': {
    equal: (d) => {
      const [a, b, k] = [d.int(1, 9), d.some(30), d.int(1, 3)];
      const inner = polynomial(d, [b, a], 'x');
      const square = polynomial(d, [b * b, 2 * a * b, a * a], 'x');
      return d.pick<Pair>([
        [`\\sqrt{(${inner})^2}`, `|${inner}|`],
        [`\\sqrt{${square}}`, `\\left|${inner}\\right|`],
        [`|${polynomial(d, [-b, -a], 'x')}|`, `abs(${inner})`],
        [`${k + 1}|${inner}|`, `|${polynomial(d, [(k + 1) * b, (k + 1) * a], 'x')}|`],
        [`|${inner}|^2`, square],
        [`\\sqrt[3]{(${inner})^3}`, inner],
        [`\\sqrt{${a * a}x}`, `${a}\\sqrt{x}`],
        [`\\max(${inner},${k})`, `\\max\\{${k},${inner}\\}`],
      ]);
    },
    different: (d) => {
      const [a, b] = [d.int(1, 9), d.some(30)];
      const inner = polynomial(d, [b, a], 'x');
      const minus = polynomial(d, [-b, -a], 'x');
      return d.pick<Pair>([
        [`\\sqrt{(${inner})^2}`, inner],
        [`|${inner}|`, d.coin() ? inner : minus],
        [`\\max(${inner},0)`, d.pick([inner, '0', `|${inner}|`])],
        [`|x|+|y+${a}|`, d.pick([`x+y+${a}`, `|x+y+${a}|`])],
        [`\\sqrt{x^2+${a}}`, `x+\\sqrt{${a}}`],
        [`\\sqrt{${inner}}^2`, inner],
        [`\\sqrt{x}\\sqrt{x+${a}}`, `\\sqrt{x^2+${a}x}`],
        [`\\frac{|${inner}|}{${inner}}`, '1'],
        [`\\sqrt[4]{x^4}`, 'x'],
      ]);
    },
  },
  'plain text and LaTeX': {
    equal: (d) => {
      const t = usableTree(d);
      return [latex(t), plain(t)];
    },
    different: (d) => {
      for (;;) {
        const [a, b] = [usableTree(d), usableTree(d)];
        // Half of the pairs differ in one place alone.
        const changed: Tree = d.coin()
          ? b
          : { op: d.pick(['+', '-'] as const), a, b: { op: 'number', value: d.int(1, 9) } };
        if (differ(a, changed)) return d.coin() ? [latex(a), plain(changed)] : [plain(a), latex(changed)];
      }
    },
  },
};
