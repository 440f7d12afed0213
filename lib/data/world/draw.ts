// What an intent draws its values and sentences from.
import type { Random } from '../../random';
import type { ChatMessage } from '../../types';
import { expand, type Patterns } from './grammar';
import {
  CITIES,
  COLOURS,
  capital,
  DAYS,
  DOCTORS,
  ITEMS,
  invented,
  MEN,
  PROBLEMS,
  SURNAMES,
  UNSEEN,
  WISHES,
  WOMEN,
} from './words';

/**
 * Which part of the world: "train"; "validation", the same patterns with other values; "test", other patterns; "names",
 * names and things that no other split has; "outside", ordinary questions that the world knows nothing about.
 */
export type WorldSplit = 'train' | 'validation' | 'test' | 'names' | 'outside';

/** What an intent makes: a prompt and its right answers. */
export interface Drawn {
  prompt: string | ChatMessage[];
  /** Right answers; the first is the usual one. */
  answers: readonly string[];
  /** The one to learn, where labels are drawn. Default: the usual one. */
  answer?: string;
  /** Of a decision: what it is between, as answers begin. */
  options?: readonly string[];
  /** Of a decision whose labels are drawn: the probability of the first option. */
  probability?: number;
  /** The record that a right answer holds as JSON. */
  record?: Readonly<Record<string, string | number>>;
  /** Of a form: the texts before, between and after its slots. */
  template?: readonly string[];
  /** Prompt and answer must stay as they are: no lower case, no typing error. */
  verbatim?: boolean;
}

/** Makes an example. */
export type Intent = (draw: Draw) => Drawn;

/** Share of the slots that an invented word fills. */
const INVENTED = 0.25;
/** Share of the prompts in lower case. */
const LOWER = 0.1;

/** Random values and sentences of one example. */
export class Draw {
  readonly random: Random;
  readonly split: WorldSplit;
  /** Prompt and values are in lower case. */
  readonly lower: boolean;
  /** Values so far, which no typing error may touch. */
  readonly values = new Set<string>();

  constructor(random: Random, split: WorldSplit) {
    this.random = random;
    this.split = split;
    this.lower = random.uniform() < LOWER;
  }

  /** One of a list. */
  pick<T>(from: readonly T[]): T {
    return from[this.random.integer(from.length)];
  }

  /** `count` different ones of a list, in random order. */
  several<T>(from: readonly T[], count: number): T[] {
    return Array.from(this.random.permutation(from.length).subarray(0, count), (i) => from[i]);
  }

  /** A whole number from `low` to `high`, both included. */
  between(low: number, high: number): number {
    return low + this.random.integer(high - low + 1);
  }

  chance(probability: number): boolean {
    return this.random.uniform() < probability;
  }

  /** A sentence of the split's patterns. */
  say(patterns: Patterns | readonly string[], slots: Readonly<Record<string, string | number>> = {}): string {
    const from = 'train' in patterns ? (this.split === 'test' ? patterns.test : patterns.train) : patterns;
    return expand(this.random, this.pick(from), slots);
  }

  /** A word that stands for itself, in the case of the prompt. */
  value(word: string): string {
    const text = this.lower ? word.toLowerCase() : word;
    for (const part of text.toLowerCase().split(' ')) this.values.add(part);
    return text;
  }

  #word(known: readonly string[], unseen: readonly string[]): string {
    if (this.split === 'names') return this.pick(unseen);
    return this.chance(INVENTED) ? capital(invented(this.random)) : this.pick(known);
  }

  /** A first name, one time in twelve with a surname. */
  name(): string {
    return this.person().name;
  }

  /** A name with its pronoun. */
  person(): { name: string; pronoun: 'he' | 'she' } {
    const man = this.chance(0.5);
    const first = this.#word(man ? MEN : WOMEN, man ? UNSEEN.men : UNSEEN.women);
    const name = this.chance(1 / 12) ? `${first} ${this.#word(SURNAMES, UNSEEN.surnames)}` : first;
    return { name: this.value(name), pronoun: man ? 'he' : 'she' };
  }

  city(): string {
    return this.value(this.#word(CITIES, UNSEEN.cities));
  }

  doctor(): string {
    return this.value(this.#word(DOCTORS, UNSEEN.doctors));
  }

  /** Things in the plural, without colour. */
  things(): string {
    if (this.split === 'names') return this.value(this.pick(UNSEEN.items));
    return this.value(this.chance(INVENTED) ? `${invented(this.random).replace(/[sxy]$/, '')}s` : this.pick(ITEMS));
  }

  /** Things that an order names, half of the time with a colour. */
  item(): string {
    return this.chance(0.5) ? `${this.value(this.pick(COLOURS))} ${this.things()}` : this.things();
  }

  day(): string {
    return this.value(this.pick(DAYS));
  }

  problem(): string {
    return this.value(this.pick(PROBLEMS));
  }

  wish(): string {
    return this.value(this.pick(WISHES));
  }

  /** How many: 2 to 99, mostly up to 20. */
  count(): number {
    return this.between(2, this.chance(0.8) ? 20 : 99);
  }

  /** An order's number, of three or four digits. */
  orderNumber(): number {
    return this.between(100, 9999);
  }

  time(): string {
    return `${this.between(8, 18)}:${this.pick(['00', '15', '30', '45'])}`;
  }
}
