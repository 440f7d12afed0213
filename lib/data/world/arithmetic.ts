// Sums within a table that a small model can learn, prices, units, word problems, and the calendar.
import type { Draw, Drawn, Intent } from './draw';
import type { Patterns } from './grammar';
import { COUNTABLES, DAYS, MONTHS, singular } from './words';

/** Largest operand of a sum, and the largest number that is subtracted. */
const LARGEST = 12;
/** Largest factor of a product. */
const FACTOR = 10;

type Sign = '+' | '-' | 'x';

interface Fact {
  a: number;
  sign: Sign;
  b: number;
  result: number;
}

function fact(draw: Draw, signs: readonly Sign[]): Fact {
  const sign = draw.pick(signs);
  if (sign === 'x') {
    const [a, b] = [draw.between(2, FACTOR), draw.between(2, FACTOR)];
    return { a, sign, b, result: a * b };
  }
  const [a, b] = [draw.between(1, LARGEST), draw.between(1, LARGEST)];
  // A difference is a sum read backwards, so that nothing falls below zero.
  return sign === '+' ? { a, sign, b, result: a + b } : { a: a + b, sign, b, result: a };
}

const equation = ({ a, sign, b, result }: Fact): string => `${a} ${sign} ${b} = ${result}`;
const NAMES: Readonly<Record<Sign, string>> = { '+': 'plus', '-': 'minus', x: 'times' };

/** An answer of one form: the equation first; a style word in the prompt asks for another. */
interface Style {
  name: 'usual' | 'short' | 'because';
  ask: Patterns;
}

const STYLES: readonly Style[] = [
  { name: 'usual', ask: { train: [''], test: [''] } },
  {
    name: 'short',
    ask: {
      train: [' {Just the number.|Only the number.|Short, please.|The number only.|In short.}'],
      test: [' {Only the number, please.|Just the number please.}'],
    },
  },
  {
    name: 'because',
    ask: {
      train: [' {Explain why.|Why?|Explain it.|Give a reason.|Say why.}'],
      test: [' {Explain, please.|And why?}'],
    },
  },
];

const style = (draw: Draw): Style => (draw.chance(0.8) ? STYLES[0] : draw.pick(STYLES.slice(1)));

const SUM: Patterns = {
  train: [
    "{What is|What's|How much is|Compute|Calculate|Tell me|Add up|Work out|Can you compute|Do you know} {$a $op $b|$a $word $b}{?|?|}",
    '$a $op $b{| = ?| =|?}',
    '$a $word $b{?|}',
    '{Hi, |Hello, |Please, |}{what is|how much is} {$a $op $b|$a $word $b}?',
    '{I need|Give me} {the result of |}{$a $op $b|$a $word $b}.',
    '{What do you get for|What does} $a $word $b{ make|}?',
  ],
  test: [
    '{Please compute|Please tell me|Please calculate} {$a $op $b|$a $word $b}.',
    '{$a $word $b is what|$a $op $b is how much}?',
    '{Can you tell me what|Tell me what} {$a $op $b|$a $word $b} is{?|.}',
  ],
};

function sum(draw: Draw): Drawn {
  const drawn = fact(draw, ['+', '-', 'x']);
  const { a, sign, b, result } = drawn;
  const chosen = draw.chance(0.85) ? STYLES[0] : STYLES[1];
  const symbol = sign === 'x' ? draw.pick(['x', 'x', '*']) : sign;
  const question = draw.say(SUM, { a, b, op: symbol, word: NAMES[sign] });
  const more = draw.say(chosen.ask);
  const prompt = more === '' ? question : `${question} ${more}`;
  return { prompt, answers: chosen.name === 'short' ? [`${result}.`] : [`${equation(drawn)}.`, `${result}.`] };
}

const PRICE: Patterns = {
  train: [
    '{A|One|Each} $one costs $p $money. {How much are|What do|How much do} $n {$many |}{cost|together cost|cost together}?',
    '{How much are|What is the price of|How much is it for|What do I pay for} $n $many at $p $money each?',
    '$n $many {for|at} $p $money each{: how much?|. How much is that?|, how much together?|. What do I pay?}',
    'If {one|a} $one is $p $money, how much are $n{ $many|}?',
    '{I buy|I want|I take|We need|I need} $n $many{. One|, and one|. Each} $one costs $p $money. {How much is that|What do I pay|How much together}?',
    '{What do|How much do} $n $many cost{, if one costs| at| for} $p $money{ each|}?',
    '{The price of|The price for} {a|one} $one is $p $money. {What do $n cost|How much are $n|And $n|And for $n}?',
  ],
  test: [
    'At $p $money each, {what do I pay for|how much are} $n $many?',
    '{I take|I buy} $n $many and each {is|costs} $p $money. {What do I pay|How much is it}?',
    '{How much do I pay|What is the price} for $n $many, if {a|one} $one costs $p $money?',
  ],
};

const FOLLOW: Patterns = {
  train: ['{And $n|And for $n|What about $n|How much are $n|And $n of them|And how much for $n}?'],
  test: ['{What if I take $n|And how much are $n|What about $n of them}?'],
};

function money(draw: Draw): Drawn {
  const many = draw.things();
  const currency = draw.pick(['euros', 'dollars', 'pounds']);
  const price = draw.between(2, FACTOR);
  const answers = (n: number) => {
    const product = { a: n, sign: 'x' as const, b: price, result: n * price };
    return [`${equation(product)}. That is ${product.result} ${currency}.`, `${equation(product)}.`];
  };
  const number = draw.between(2, FACTOR);
  const first = draw.say(PRICE, { one: singular(many), many, n: number, p: price, money: currency });
  if (!draw.chance(0.2)) return { prompt: first, answers: answers(number) };
  const next = draw.between(2, FACTOR);
  return {
    prompt: [
      { role: 'user', content: first },
      { role: 'assistant', content: answers(number)[0] },
      { role: 'user', content: draw.say(FOLLOW, { n: next }) },
    ],
    answers: answers(next),
  };
}

/** Small and large unit, how many of the one make the other, and the largest number that is asked for. */
const UNITS: readonly (readonly [string, string, number, number])[] = [
  ['days', 'weeks', 7, 10],
  ['minutes', 'hours', 60, 9],
  ['seconds', 'minutes', 60, 9],
  ['months', 'years', 12, 9],
  ['hours', 'days', 24, 5],
  ['centimetres', 'metres', 100, 20],
  ['grams', 'kilos', 1000, 20],
  ['cents', 'euros', 100, 20],
];

const UNIT: Patterns = {
  train: [
    'How many $small {are |are there |make |does it take for |}in $n $big?',
    '{Convert|Change|Turn|Put} $n $big {to|into|in} $small.',
    '$n $big {in|to|as} $small{?|}',
    '{What is|What are|How much is|Tell me} $n $big in $small{?|}',
    '{How many $small have|How many $small do} $n $big{ have|}?',
  ],
  test: [
    '{$n $big are|$n $big make} how many $small?',
    '{Tell me how many $small are|How many $small do we have} in $n $big.',
    '{Please convert|Please change} $n $big {to|into} $small.',
  ],
};

function units(draw: Draw): Drawn {
  const [small, big, factor, largest] = draw.pick(UNITS);
  const n = draw.between(2, largest);
  return {
    prompt: draw.say(UNIT, { n, small, big }),
    answers: [`${n} ${big} are ${n * factor} ${small}.`, `That is ${n * factor} ${small}.`, `${n * factor} ${small}.`],
  };
}

const PROBLEM: Patterns = {
  train: [
    '$name has $a $things{. $pronoun |, and |, then }$verb $b{| more}. {How many {$things |}does $name have{ now|}|How many now|How many {$things |}are there now|How many are left}?',
    '$name had $a $things{, then| and then|. Then $pronoun| and} $verb $b. How many {$things |}{now|does $name have{| now}}?',
    '{With|Starting with} $a $things, $name $verb $b. How many {$things |}{now|are there now}?',
    'How many $things does $name have{ now|}, if $pronoun had $a and $verb $b?',
    '{There are|Here are} $a $things. $name $verb $b. How many {now|are there|are there now}?',
    '{First|Today} $name had $a $things, {then|and then} $pronoun $verb $b. {How many now|How many $things are there}?',
    '$name {owns|starts with} $a $things and $verb $b. How many {now|does $pronoun have}?',
  ],
  test: [
    '{Suppose|Say} $name has $a $things and $verb $b. How many {now|are there}?',
    '{If $name has|If $name had} $a $things and $verb $b, how many {are there|does $pronoun have now}?',
    '$name $verb $b $things{. Before that $pronoun had| after $pronoun had} $a. How many now?',
  ],
};

const VERBS: Readonly<Record<'+' | '-', readonly string[]>> = {
  '+': ['buys', 'finds', 'gets', 'wins', 'receives'],
  '-': ['loses', 'sells', 'drops', 'uses', 'eats', 'gives away'],
};

function problem(draw: Draw): Drawn {
  const drawn = fact(draw, ['+', '-']);
  const { name, pronoun } = draw.person();
  const things = draw.value(draw.pick(COUNTABLES));
  const chosen = style(draw);
  const verb = draw.pick(VERBS[drawn.sign as '+' | '-']);
  const question = draw.say(PROBLEM, { name, pronoun, things, a: drawn.a, b: drawn.b, verb });
  const more = draw.say(chosen.ask);
  const claim = `${name} has ${drawn.result} ${things}`;
  const swapped = drawn.sign === '+' ? [equation({ ...drawn, a: drawn.b, b: drawn.a })] : [];
  const usual = [equation(drawn), ...swapped].map((text) => `${text}. ${claim}.`);
  const because = [equation(drawn), ...swapped].map((text) => `${claim}, because ${text}.`);
  const answers = {
    usual: [...usual, ...because, `${claim}.`],
    short: [`${drawn.result}.`],
    because,
  }[chosen.name];
  const text = question.replace(
    /(^|[.] )(he|she)\b/g,
    (_, before: string, word: string) => `${before}${word[0].toUpperCase()}${word.slice(1)}`,
  );
  return { prompt: more === '' ? text : `${text} ${more}`, answers };
}

const DAY_OR_MONTH: Readonly<Record<'next' | 'far', Patterns>> = {
  next: {
    train: [
      '{What|Which} $unit {comes |is |}$side $x?',
      '{Today|It} is $x. {What|Which} $unit $near?',
      '{What is the|Tell me the|Name the} $unit $side $x{?|}',
      '{What|Which} is the $unit $side $x?',
      'The $unit $side $x?',
    ],
    test: ['{Do you know|Can you tell me} the $unit $side $x?', '{What $unit do we have|Which $unit is it} $side $x?'],
  },
  far: {
    train: [
      '{What|Which} $unit is $k $units $side $x?',
      '{Today|It} is $x. {What|Which} $unit $away?',
      '{What|Which} $unit {comes|is it} $k $units $side $x?',
      '$k $units $side $x{?|, which $unit is it?|, what $unit?}',
    ],
    test: [
      '{Tell me|Name} the $unit $k $units $side $x.',
      '{Which $unit do we have|What $unit do we have} $k $units $side $x?',
    ],
  },
};

function dates(draw: Draw): Drawn {
  const [names, unit, most] = draw.chance(0.6) ? ([DAYS, 'day', 3] as const) : ([MONTHS, 'month', 2] as const);
  const at = draw.random.integer(names.length);
  const k = draw.chance(0.6) ? 1 : draw.between(2, most);
  const later = draw.chance(0.6);
  const answer = names[(at + (later ? k : -k) + names.length) % names.length];
  const prompt = draw.say(DAY_OR_MONTH[k === 1 ? 'next' : 'far'], {
    unit,
    units: `${unit}s`,
    k,
    x: names[at],
    side: later ? 'after' : 'before',
    near: draw.pick(later ? ['comes next', 'is next'] : ['was before', 'came before']),
    away: later ? `is it in ${k} ${unit}s` : `was it ${k} ${unit}s ago`,
  });
  draw.value(names[at]);
  return { prompt, answers: [`${answer}.`, `It is ${answer}.`] };
}

export const ARITHMETIC_INTENTS = { sum, money, units, problem, dates } satisfies Record<string, Intent>;
