// Random numbers of training as a function of (seed, purpose, step, row), so that a resumed run draws what the
// interrupted one would have.

const MASK = 2n ** 64n - 1n;

/** What a stream of random numbers is for; streams of different purposes are independent. */
export const Purpose = {
  examples: 1,
  order: 2,
  masks: 3,
  rollouts: 4,
  evaluation: 5,
  initialisation: 6,
  adapters: 7,
  padding: 8,
  mixture: 9,
  redraws: 10,
  scores: 11,
  calibration: 12,
} as const;

/** The finaliser of SplitMix64: a bijection that scrambles bits. */
function mix(value: bigint): bigint {
  let x = (value + 0x9e3779b97f4a7c15n) & MASK;
  x = ((x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  x = ((x ^ (x >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return x ^ (x >> 31n);
}

/** A seed for a purpose and coordinates, 0 to 2^64 − 1. */
export function deriveSeed(seed: bigint, purpose: number, ...coordinates: number[]): bigint {
  let state = mix(seed ^ (BigInt(purpose) << 56n));
  for (const coordinate of coordinates) state = mix(state ^ BigInt(coordinate));
  return state;
}

/** {@link deriveSeed} as a whole number that a double holds exactly. */
export function deriveNumber(seed: bigint, purpose: number, ...coordinates: number[]): number {
  return Number(deriveSeed(seed, purpose, ...coordinates) >> 11n);
}

/** A small fast generator (sfc32). */
export class Random {
  #a: number;
  #b: number;
  #c: number;
  #d = 1;

  constructor(seed: bigint) {
    const second = mix(seed);
    this.#a = Number(seed & 0xffffffffn) | 0;
    this.#b = Number(seed >> 32n) | 0;
    this.#c = Number(second & 0xffffffffn) | 0;
    for (let i = 0; i < 12; i++) this.#next();
  }

  #next(): number {
    const t = (((this.#a + this.#b) | 0) + this.#d) | 0;
    this.#d = (this.#d + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + t) | 0;
    return t >>> 0;
  }

  /** Uniform in [0, 1), 53 bits. */
  uniform = (): number => ((this.#next() >>> 5) * 2 ** 26 + (this.#next() >>> 6)) / 2 ** 53;

  /** A whole number from 0 to n − 1. */
  integer(n: number): number {
    return Math.floor(this.uniform() * n);
  }

  /** Standard normal (Box–Muller). */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  /** 0 to n − 1 in random order. */
  permutation(n: number): Int32Array {
    const order = Int32Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }
}
