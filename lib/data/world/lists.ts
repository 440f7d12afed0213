// Lists to sort, turn round, count and pick from; questions about two facts.
import type { Draw, Drawn, Intent } from './draw';
import type { Patterns } from './grammar';
import { COLOURS, FRUIT, invented } from './words';

const SORT_WORDS: Patterns = {
  train: [
    '{Sort|Order|Sort the list|Sort these|Sort these words|Order these words|Sort the words|Put in order}: $list',
    '{Put these in order|Sort from A to Z|From A to Z|Sort by the alphabet|In order, please}: $list',
    '{Sort|Order} $list{.|}',
    '$list. {Sort them.|Sort the list.|Put them in order.}',
    '{Can you sort|Please sort} {these|these words|this list}: $list',
  ],
  test: ['{Please put these in order|Sort this list}: $list', '$list. {Sort these words.|Please sort them.}'],
};

const SORT_NUMBERS: Patterns = {
  train: [
    '{Sort|Order|Sort the list|Sort these|Sort these numbers|Sort the numbers|Put in order}: $list',
    '{Put these in order|From small to large|Sort from small to large|In order, please}: $list',
    '{Sort|Order} $list{.|}',
    '$list. {Sort them.|Sort the numbers.|Put them in order.}',
    '{Can you sort|Please sort} {these|these numbers|this list}: $list',
  ],
  test: ['{Please put these in order|Sort this list}: $list', '$list. {Sort these numbers.|Please sort them.}'],
};

const REVERSE: Patterns = {
  train: [
    '{Reverse|Reverse the list|Reverse this|Backwards|In reverse|From the end}: $list',
    '{Turn this around|Turn the list around|Say it backwards|List it backwards}: $list',
    '$list. {Reverse the list.|Now backwards.|Reverse it.}',
  ],
  test: ['{Please reverse this|Now in reverse|The list backwards}: $list', '$list. {Turn it around.|Reverse them.}'],
};

const PICK: Patterns = {
  train: [
    '{What is|Which is|Tell me|Name|Give me} the $place {one|word|entry|item|} {of|in}{ this list|}: $list',
    'The $place {one|word|entry}: $list',
    '$list. {Which is the $place|What is the $place one|Which one is $place}?',
    'Which {one|word} {comes|is} $place{ in this list|}: $list',
  ],
  test: ['{What comes $place|Which one comes $place}: $list', '$list. {Name the $place one.|What is the $place word?}'],
};

const COUNT: Patterns = {
  train: [
    'How many {words|entries|things|items|} {are|are there|are there in|are in}{ this list| here|}: $list',
    '{Count|Count these|Count the words|Count the list|Count them}: $list',
    '$list. {How many are these|How many are there|How many words is that}?',
  ],
  test: [
    '{How many words do you see|How many are in the list}: $list',
    '$list. {Count them.|How many words are there?}',
  ],
};

/** Three to five different entries, to be sorted from a closed list, else with invented words among them. */
function entries(draw: Draw, numbers: boolean, open: boolean): string[] {
  const count = draw.between(3, 5);
  if (numbers)
    return draw.several(
      Array.from({ length: 99 }, (_, i) => String(i + 1)),
      count,
    );
  const known = draw.several(draw.chance(0.6) || !open ? FRUIT : COLOURS, count);
  if (!open || !draw.chance(0.5)) return known;
  const words = known.map((word) => (draw.chance(0.5) ? invented(draw.random) : word));
  return [...new Set(words)];
}

const text = (entries: readonly string[]): string => entries.join(', ');

function sort(draw: Draw): Drawn {
  const numbers = draw.chance(0.5);
  const list = entries(draw, numbers, false).slice(0, 4);
  const sorted = numbers ? [...list].sort((a, b) => Number(a) - Number(b)) : [...list].sort();
  const prompt = draw.say(numbers ? SORT_NUMBERS : SORT_WORDS, { list: text(list) });
  return { prompt, answers: [`${text(sorted)}.`], verbatim: true };
}

function list(draw: Draw): Drawn {
  const given = entries(draw, draw.chance(0.3), true);
  const slots = { list: text(given) };
  const kind = draw.pick(['reverse', 'pick', 'count'] as const);
  if (kind === 'reverse')
    return { prompt: draw.say(REVERSE, slots), answers: [`${text([...given].reverse())}.`], verbatim: true };
  if (kind === 'count') return { prompt: draw.say(COUNT, slots), answers: [`${given.length}.`], verbatim: true };
  const last = draw.chance(0.5);
  const prompt = draw.say(PICK, { ...slots, place: last ? 'last' : 'first' });
  return { prompt, answers: [`${last ? given[given.length - 1] : given[0]}.`], verbatim: true };
}

const BOUGHT: Patterns = {
  train: [
    '$a {ordered|bought|wants|has|needs} $n1 $i1{ and|,|.} $b {ordered|bought|wants|has|needs} $n2 $i2.',
    '$a: $n1 $i1. $b: $n2 $i2.',
    '{First|Today} $a {bought|ordered} $n1 $i1, then $b {bought|ordered} $n2 $i2.',
    '{There are|We have} $n1 $i1 for $a and $n2 $i2 for $b.',
    '$n1 $i1 for $a, $n2 $i2 for $b.',
  ],
  test: [
    '$n1 $i1 are for $a, and $n2 $i2 are for $b.',
    '$a {asked for|took} $n1 $i1, and $b {asked for|took} $n2 $i2.',
  ],
};

const LIVES: Patterns = {
  train: [
    '$a {lives|works|is} in $c1 and $b {lives|works|is} in $c2.',
    '$a is from $c1, $b is from $c2.',
    '$a {works|lives} in $c1. $b {works|lives} in $c2.',
    '$a: $c1. $b: $c2.',
    '{In $c1 lives|In $c1 works} $a, in $c2 $b.',
  ],
  test: ['In $c1 there is $a, in $c2 there is $b.', '$a comes from $c1 and $b comes from $c2.'],
};

/** Something different from what `draw` gave before. */
function other<T>(first: T, draw: () => T): T {
  for (;;) {
    const second = draw();
    if (second !== first) return second;
  }
}

function question(draw: Draw): Drawn {
  const people = [draw.name()];
  people.push(other(people[0], () => draw.name()));
  const x = draw.random.integer(2);
  const join = (facts: string, asked: string) => (draw.chance(0.75) ? `${facts} ${asked}` : `${asked} ${facts}`);
  const [a, b] = people;
  if (draw.chance(0.4)) {
    const cities = [draw.city()];
    cities.push(other(cities[0], () => draw.city()));
    const facts = draw.say(LIVES, { a, b, c1: cities[0], c2: cities[1] });
    const place = draw.chance(0.5);
    const asked = place
      ? draw.say(['{Where does $p live|Where is $p{ from|}|Which city is $p in}?'], { p: people[x] })
      : draw.say(['{Who lives in $c|Who is {from|in} $c|Who is it in $c}?'], { c: cities[x] });
    return { prompt: join(facts, asked), answers: [`${place ? cities[x] : people[x]}.`] };
  }
  const things = [draw.things()];
  things.push(other(things[0], () => draw.things()));
  const numbers = [draw.between(2, 30)];
  numbers.push(other(numbers[0], () => draw.between(2, 30)));
  const facts = draw.say(BOUGHT, { a, b, n1: numbers[0], i1: things[0], n2: numbers[1], i2: things[1] });
  const who = draw.chance(0.5);
  const asked = who
    ? draw.say(['{Who {ordered|bought|wants|has|needs} {the |}$i|Who gets the $i|Who are the $i for}?'], {
        i: things[x],
      })
    : draw.say(['{How many $i {did|does} $p {order|buy|want|have|need}|How many $i are for $p|How many $i}?'], {
        i: things[x],
        p: people[x],
      });
  return { prompt: join(facts, asked), answers: [`${who ? people[x] : numbers[x]}.`] };
}

export const LIST_INTENTS = { sort, list, question } satisfies Record<string, Intent>;
