// Orders, tickets and appointments, read into JSON; and the first lesson, copying.
import type { Draw, Drawn, Intent } from './draw';
import type { Patterns } from './grammar';
import {
  CITIES,
  COLOURS,
  COUNTABLES,
  capital,
  DAYS,
  DOCTORS,
  FRUIT,
  ITEMS,
  invented,
  MEN,
  MONTHS,
  PROBLEMS,
  UNSEEN,
  WISHES,
  WOMEN,
} from './words';

type Fields = Readonly<Record<string, string | number>>;

/** A kind of message that holds a record. */
interface Kind {
  /** What a prompt calls it. */
  nouns: readonly string[];
  fields(draw: Draw): Fields;
  patterns: Patterns;
}

const ORDER: Kind = {
  nouns: ['order', 'purchase'],
  fields: (draw) => ({ name: draw.name(), item: draw.item(), count: draw.count(), city: draw.city() }),
  patterns: {
    train: [
      '{Hi|Hello|Good morning|Hi there|Hey}, {this is|my name is|I am|it is} $name. {I would like|I want|I need|Please send me|Can I have|I would like to order} $count $item{ please|} {to|sent to|delivered to|shipped to} $city.',
      '{Hi|Hello|Dear team|Good evening}, {I would like|I want|I need} $count $item{ please|}. {My name is|I am|The name is} $name and {I live in|I am in|the address is in} $city.',
      '{Please send|Send|Ship|Please ship|Please deliver|Deliver} $count $item to $name in $city{.|, thanks.|, please.}',
      '{Please send|Send|Ship|Please ship} $name in $city $count $item.',
      '{Please send|We need|Send us|I need} $count $item {in|to} $city{. | and } {the customer is|it is for|they are for} $name.',
      '$name {from|in} $city {wants|needs|orders|would like|ordered|is asking for|asks for|bought|wants to buy} $count $item{.| today.| again.}',
      '$name {wants|needs|orders|would like|ordered|bought} $count $item {and lives in|for a shop in|sent to|delivered to|to be sent to} $city.',
      '{I am|This is} $name{ from| in} $city{. | and }{I want to order|I would like to buy|I need|I want|please send me} $count $item{.|, please.}',
      '{Order|New order|Another order|Order please}: $count $item, {for|to|customer|name} $name, {in |city |}$city.',
      '{Order|New order|Order for|Customer} $name{,|:} $count $item{,|;} {to |in |city |}$city.',
      '$count $item for $name, {delivery|shipping|address|city|send to}: $city.',
      '$count $item {to|for delivery to|shipped to} $city, {for|customer|name:} $name.',
      '{Could you|Can you|Would you|Please can you} {send|ship|deliver} $count $item to $city? {My name is|The name is|It is for|They are for|I am} $name.',
      '{Could you|Can you} {send|ship|deliver} $count $item to $name{, who lives|, who is|} in $city?',
      '$city is where $name {lives|works}, and {he wants|she wants|needs|there we need} $count $item.',
      '{We|I} have an order from $name{ in|,} $city{: | for }$count $item.',
      '{The customer|Our customer|A customer called|The client} $name {from|in} $city {ordered|wants|needs|asks for} $count $item.',
      '{I|We} {ordered|bought} $count $item {yesterday|last week|today}, {please send them|deliver them|ship them} to $city. $name',
      '{Ship to|Deliver to|Address}: $name, $city. {Items|Order|Goods}: $count $item.',
      '{In|For} $city, $name {ordered|needs|wants|is waiting for} $count $item.',
      '{My name is|I am|This is} $name, {I want|I need|I ordered} $count $item {and I live in|here in|for my house in|to my home in} $city.',
      '{My friend|My brother|My sister|My boss} $name {in|from} $city {wants|needs|would like} $count $item.',
    ],
    test: [
      '{Dear shop|Dear team}, {we|I} {need|want} $count $item in $city. {Regards|Thanks|Yours}, $name',
      '{Please note|Note} an order of $count $item by $name, who lives in $city.',
      '{Put me down for|I will take} $count $item. {I live in|Ship it to} $city and my name is $name.',
      '{Hello, |Hi, |}$name here, {from|in} $city. {I need|I would like} $count $item{.|, please.}',
      '{We have to|We must|Please} {deliver|send} $count $item to {our customer|the customer} $name in $city.',
      '$name {called|wrote} from $city and {ordered|wants} $count $item.',
    ],
  },
};

const TICKET: Kind = {
  nouns: ['ticket', 'complaint'],
  fields: (draw) => ({ name: draw.name(), order: draw.orderNumber(), problem: draw.problem(), wants: draw.wish() }),
  patterns: {
    train: [
      '{My|The} order $order {is|was|arrived|came} $problem. {I want|I would like|Please give me|I need|I expect} a $wants{.|, please.} {This is|My name is|Regards,|Thanks,|I am} $name.',
      '{Hello|Hi|Dear team}, {this is|I am|my name is} $name. {Order|Parcel|My order|The order} $order {is|was|arrived} $problem and I {want|need|expect|would like} a $wants.',
      '$name {says|writes|reports|complains} that order $order {was|is|arrived|came} $problem{ and wants| and asks for|. Wanted:| and needs} a $wants.',
      '{Ticket|Complaint|New ticket|Problem}: order $order $problem, {customer|name|from} $name, {wants|asks for|needs} a $wants.',
      '{I am|This is|My name is} $name. {Can I get|Could I have|May I have|Can I have} a $wants? {Order|Number|My order} $order {is|came|was} $problem.',
      '{A $wants please|I need a $wants|I want a $wants}! {Order $order|My parcel $order|My order $order} {is|was|arrived} $problem. $name',
      '{The customer|Our customer|The client} $name {wants|asks for|needs|would like} a $wants, because order $order {is|was|arrived|came} $problem.',
      '{Order|Number|Parcel} $order: $problem. {Customer|Name|From}: $name. {Wants|Asks for|Wish}: $wants.',
      '{I have|There is} a problem with order $order, it {is|was|came|arrived} $problem. {I want|Please give me|I would like} a $wants. $name',
      '{Why is|Why was} my order $order $problem? {I want|I need|Please give me} a $wants{.|!} {I am|This is|My name is} $name.',
      '$name {got|has|received} order $order $problem and {wants|asks for|would like|hopes for} a $wants.',
      '{It is|This is} $name again. Order $order {is|was} {still |}$problem, {I want|please send me|give me} a $wants.',
    ],
    test: [
      '{It is about|I write about} order $order: it came $problem. $name here, hoping for a $wants.',
      '$name again. Number $order {turned out|looks} $problem, so please arrange a $wants.',
      '{Please give|We should give} $name a $wants, {since|as} order $order {was|arrived} $problem.',
      '{Hello, |Hi, |}my parcel $order {was|is} $problem. {Is a $wants possible|Can you offer a $wants}? {My name is|I am} $name.',
    ],
  },
};

const VISIT: Kind = {
  nouns: ['visit', 'appointment'],
  fields: (draw) => ({ name: draw.name(), doctor: draw.doctor(), day: draw.day(), time: draw.time() }),
  patterns: {
    train: [
      '{Can I|Could I|May I} {see|visit|meet} Dr. $doctor on $day at $time? {My name is|I am|This is} $name.',
      '{Hi|Hello}, {my name is|I am|this is} $name. {Can I|Could I|May I} {see|visit|meet} Dr. $doctor on $day at $time?',
      '{Please book|Book|I want|I need|We need|Please make} {an appointment|a visit|a meeting} with Dr. $doctor {on|for} $day at $time for $name.',
      '{Please book|Book|I need} {an appointment|a visit|a meeting} for $name with Dr. $doctor{,| on} $day at $time.',
      '$name {wants to see|would like to see|has a visit with|will meet|needs to see|is going to see|has an appointment with} Dr. $doctor {on|this|next} $day at $time.',
      '{Hi|Hello}, $name here. {Is|Would} $day at $time {okay|fine|free|good} for {a visit to|meeting|seeing} Dr. $doctor?',
      '{On|Next|This} $day at $time $name {will see|sees|meets|visits|has an appointment with} Dr. $doctor.',
      'Dr. $doctor, $day, $time, {for|patient|name|with} $name.',
      '{Patient|Name|Visit of|Appointment for} $name{,|:} Dr. $doctor, $day{,| at} $time.',
      '{Dr. $doctor|Doctor $doctor} {sees|meets|will see|has time for|is free for} $name on $day at $time.',
      '{Does|Is} Dr. $doctor {have time|free} on $day at $time? {It is for|I ask for|The patient is|I am} $name.',
      '{I am|This is|My name is} $name and {I want|I need|I would like} {to see|to meet|a visit to} Dr. $doctor on $day at $time.',
      '{At|Around} $time on $day, $name {sees|meets|visits|will see} Dr. $doctor.',
      '{The patient|Our patient|A patient called} $name {comes|is coming|wants to come} to Dr. $doctor on $day at $time.',
      '{Please tell|Tell} Dr. $doctor that $name {comes|will come|is coming} on $day at $time.',
      '$day, $time: {visit of|appointment for|meeting with|patient} $name, Dr. $doctor.',
      '{Put|Write} $name {down for|in for} $day at $time{,| with} Dr. $doctor.',
      '{My appointment|My visit|The visit} with Dr. $doctor is on $day at $time. {I am|My name is|This is} $name.',
    ],
    test: [
      '{Dr. $doctor should see|Let Dr. $doctor see} $name, {say|perhaps} $day, $time.',
      '{At $time on $day|$day, $time}: $name {goes to|calls on} Dr. $doctor.',
      '{Is there|Do you have} time for $name on $day at $time with Dr. $doctor?',
      '{Please book|Book} $name for $day at $time, {the doctor is|with} Dr. $doctor.',
      '{Hello, |Hi, |}I would like to come to Dr. $doctor on $day at $time. {My name is|I am} $name.',
    ],
  },
};

const ASK_JSON: Patterns = {
  train: [
    '{Extract|Get|Read|Put|Write|Turn} the $kind {as|to|into|in} JSON: $text',
    '{JSON|As JSON|In JSON|JSON please|To JSON}: $text',
    '{Give me|Write|Make|I need|Show me} {the |}JSON {for|of} this $kind: $text',
    '{Convert|Change|Turn} this $kind {to|into} JSON: $text',
    '$text {Answer in JSON.|As JSON.|Write it as JSON.|In JSON, please.|Give me JSON.|JSON please.|JSON?}',
    'Which $kind is this? JSON{:|, please:} $text',
    '{What does this $kind say|Read this $kind}? {JSON|In JSON|As JSON}: $text',
  ],
  test: [
    '{Turn this into JSON|As JSON please|Extract JSON}: $text',
    '$text {Please write that as JSON.|Now as JSON.|Extract it as JSON.}',
    '{I need|Please give me} this $kind {as|in} JSON: $text',
    '{Extract|Get|Read} the $kind as JSON: $text',
  ],
};

const ASK_FORM: Patterns = {
  train: [
    '{Fill in the form|Form|Fill in|The form|Fill the form}: $text',
    '{Fill in|Complete|Fill} the $kind form: $text',
    '{Fill in|Complete} the form for this $kind: $text',
    '$text {Fill in the form.|Fill the form.|Complete the form.|Form please.}',
  ],
  test: ['{Please fill in the form|Complete this form}: $text', '$text {Now fill in the form.|Put it in the form.}'],
};

const json = (record: Fields): string => JSON.stringify(record);

function ask(draw: Draw, kind: Kind, fields: Fields, request: Patterns): string {
  return draw.say(request, { kind: draw.pick(kind.nouns), text: draw.say(kind.patterns, fields) });
}

const extraction =
  (kind: Kind): Intent =>
  (draw) => {
    const record = kind.fields(draw);
    return { prompt: ask(draw, kind, record, ASK_JSON), answers: [json(record)], record };
  };

/** The texts around the values of a record as JSON; the quotes that open a value belong to them, those behind do not. */
const templateOf = (record: Fields): string[] => [
  ...Object.entries(record).map(
    ([key, value], i) => `${i === 0 ? '{' : ','}"${key}":${typeof value === 'string' ? '"' : ''}`,
  ),
  '}',
];

/**
 * JSON with spaces behind every value, as a slot leaves over that is wider than its value. How many is drawn: forms are
 * to be filled in, not to be written freely.
 */
function padded(draw: Draw, record: Fields): string {
  const template = templateOf(record);
  const slots = Object.values(record).map((value) => {
    const text = typeof value === 'string' ? json({ '': value }).slice(5, -1) : String(value);
    return `${text}${' '.repeat(draw.between(1, 8))}`;
  });
  return template.map((text, i) => text + (slots[i] ?? '')).join('');
}

const form =
  (kinds: readonly Kind[]): Intent =>
  (draw) => {
    const kind = draw.pick(kinds);
    const record = kind.fields(draw);
    const prompt = ask(draw, kind, record, ASK_FORM);
    return { prompt, answers: [padded(draw, record)], record, template: templateOf(record) };
  };

/** Fields that a record of the first lesson may have. */
const FIELDS: Readonly<Record<string, (draw: Draw) => string | number>> = {
  name: (draw) => draw.name(),
  item: (draw) => draw.item(),
  count: (draw) => draw.count(),
  city: (draw) => draw.city(),
  order: (draw) => draw.orderNumber(),
  problem: (draw) => draw.problem(),
  wants: (draw) => draw.wish(),
  doctor: (draw) => draw.doctor(),
  day: (draw) => draw.day(),
  time: (draw) => draw.time(),
};

function record(draw: Draw): Drawn {
  const keys = draw.several(Object.keys(FIELDS), draw.between(1, 4));
  const fields = Object.fromEntries(keys.map((key) => [key, FIELDS[key](draw)]));
  const is = draw.pick([' ', ': ', ' is ', ' = ']);
  const swapped = draw.chance(0.2);
  const text = keys
    .map((key) => (swapped ? `${fields[key]} (${key})` : `${key}${is}${fields[key]}`))
    .join(draw.pick([', ', '; ', '. ', ' and ', ' ']));
  const prompt = draw.say(
    {
      train: ['{JSON|Record|As JSON}: $text', '$text. {As JSON.|JSON.|JSON please.}', '$text'],
      test: ['{This as JSON|A record}: $text', '$text. {In JSON.|Write JSON.}'],
    },
    { text },
  );
  return { prompt, answers: [json(fields)], record: fields, verbatim: true };
}

const WORDS = [
  ...[MEN, WOMEN, CITIES, DOCTORS, DAYS, MONTHS],
  ...[ITEMS, COLOURS, FRUIT, COUNTABLES, PROBLEMS, WISHES],
].flat();
const UNSEEN_WORDS = Object.values(UNSEEN).flat();

/** A word, a number or an invented word, for lists that are repeated. */
function anything(draw: Draw): string {
  if (draw.chance(0.2)) return String(draw.between(1, draw.chance(0.5) ? 99 : 9999));
  if (draw.split === 'names') return draw.pick(UNSEEN_WORDS);
  if (!draw.chance(0.4)) return draw.pick(WORDS);
  const word = invented(draw.random);
  return draw.chance(0.5) ? capital(word) : word;
}

function repeat(draw: Draw): Drawn {
  const text = Array.from({ length: draw.between(1, 5) }, () => anything(draw)).join(draw.pick([', ', ' ', ' and ']));
  const prompt = draw.say(
    {
      train: [
        '{Repeat|Copy|Say|Repeat after me|Say it again|Write|Echo}: $text',
        '{Say|Repeat} $text',
        '$text. Say it again.',
      ],
      test: ['{Please repeat|Now say|Copy this}: $text', '$text. {Repeat that.|Again, please.}'],
    },
    { text },
  );
  return { prompt, answers: [`${text}.`], verbatim: true };
}

export const EXTRACTION_INTENTS = {
  record,
  repeat,
  order: extraction(ORDER),
  ticket: extraction(TICKET),
  visit: extraction(VISIT),
  form: form([ORDER, TICKET, VISIT]),
} satisfies Record<string, Intent>;
