// Reviews and messages of customers, and decisions about them: sentiment, stars, coming back, which team.
import type { Draw, Drawn, Intent } from './draw';
import type { Patterns } from './grammar';
import { capital, DAYS, MONTHS, singular } from './words';

/** Adjectives by stars. */
const ADJECTIVES: Readonly<Record<number, readonly string[]>> = {
  5: ['excellent', 'perfect', 'wonderful', 'amazing', 'fantastic', 'great', 'superb'],
  4: ['good', 'nice', 'solid', 'pleasant', 'fine'],
  3: ['okay', 'average', 'acceptable', 'ordinary', 'usual'],
  2: ['bad', 'poor', 'weak', 'disappointing', 'cheap'],
  1: ['terrible', 'awful', 'horrible', 'useless', 'dreadful'],
};

const REMARKS: Readonly<Record<number, readonly string[]>> = {
  5: [
    'I love it',
    'It is the best I ever had',
    'I am very happy',
    'Everybody loves it',
    'I would buy it again',
    'Five stars',
  ],
  4: ['I like it', 'I am happy with it', 'It works well', 'I am glad I bought it', 'It is what I wanted'],
  3: ['It does the job', 'Nothing special', 'It is neither good nor bad', 'It is so so', 'I do not mind it'],
  2: [
    'I do not like it',
    'It did not work well',
    'I expected more',
    'I am not happy with it',
    'It is not what I wanted',
  ],
  1: [
    'I hate it',
    'It broke on the first day',
    'I want my money back',
    'Never again',
    'Do not buy it',
    'It does not work',
  ],
};

const REVIEW: Patterns = {
  train: [
    '{The|This|My} $item {is|was} $w. $s.',
    '$s. {The|This} $item {is|was} $w.',
    '{What a|Such a} $w $item! $s.',
    '{A|One} $w $item. $s.',
    '$s, {the|this} $item is {just|really|so|very|} $w.',
    '{I bought|We bought|I got} this $item {last week|in $month|on $day}. It is $w. $s.',
    '{The $item was $w and|It was $w,} the {delivery|parcel|service} was $w2{.|. $s.}',
    '{$w|very $w|really $w}, $w2. $s.',
    'The {food|soup|waiter|room|hotel|staff|film|book} was $w{.| and $w2.}{| $s.}',
    '{I think|I find} {this|the} $item $w{.|, $s.}',
  ],
  test: [
    '{Honestly|To be honest}, {a |this is a |}$w $item. $s!',
    '{Got|Received} my $item today: $w, {really|very} $w2. $s.',
    '{The|This} $item {looks|seems} $w. $s.',
  ],
};

function review(draw: Draw): { stars: number; text: string } {
  const stars = draw.between(1, 5);
  const [w, w2] = draw.several(ADJECTIVES[stars], 2);
  const text = draw.say(REVIEW, {
    item: singular(draw.things()),
    w,
    w2,
    s: draw.pick(REMARKS[stars]),
    month: draw.pick(MONTHS),
    day: draw.pick(DAYS),
  });
  return { stars, text: capital(text) };
}

const ASK_SENTIMENT: Patterns = {
  train: [
    '{Positive, negative or neutral|Negative, neutral or positive|Positive or negative}? $text',
    '{Is|Was} this {review|text|comment|message} positive, negative or neutral? $text',
    '$text {Positive, negative or neutral?|Is that positive, negative or neutral?|Is this review positive?|Sentiment?}',
    '{Sentiment|Mood|Tone|Sentiment please}: $text',
    '{What is|Tell me|Give me} the {sentiment|mood}{?|:| of this review:} $text',
    'Is this {review|customer} {positive or negative|happy or not}? $text',
  ],
  test: [
    '{How does the customer feel, positive, negative or neutral|Is this text positive or negative}? $text',
    '{Sentiment of|The sentiment of this}: $text',
    '$text {What is the sentiment?|Is it positive or negative?}',
  ],
};

function sentiment(draw: Draw): Drawn {
  const { stars, text } = review(draw);
  const options = ['Positive', 'Negative', 'Neutral'];
  const answer = options[stars > 3 ? 0 : stars < 3 ? 1 : 2];
  return { prompt: draw.say(ASK_SENTIMENT, { text }), answers: [`${answer}.`], options };
}

const ASK_STARS: Patterns = {
  train: [
    '{Rate|Score} this {review|text|comment} from 1 to 5: $text',
    '{Score|Stars|Rating} from 1 to 5: $text',
    '$text {How many stars?|Score from 1 to 5?|Rate it from 1 to 5.|How many stars is that?|Stars?}',
    '{Give a score|Give it stars|Give stars} from 1 to 5: $text',
    '{Stars|How many stars|How many stars is this}? $text',
  ],
  test: [
    '{How many stars, from 1 to 5|How many stars from 1 to 5 is this review}? $text',
    '{Stars (1 to 5) for|Give this review 1 to 5 stars}: $text',
    '$text {How many stars from 1 to 5?|Rate this from 1 to 5.}',
  ],
};

function stars(draw: Draw): Drawn {
  const { stars: count, text } = review(draw);
  return { prompt: draw.say(ASK_STARS, { text }), answers: [`${count}.`], options: ['1', '2', '3', '4', '5'] };
}

/** Probability that a customer comes back, by stars: labels are drawn from it, so that calibration can be measured. */
const COMES_BACK: Readonly<Record<number, number>> = { 1: 0.03, 2: 0.15, 3: 0.5, 4: 0.85, 5: 0.97 };

const ASK_AGAIN: Patterns = {
  train: [
    '{Will|Would|Does} {the|this} customer {buy again|come back|buy it again}? $text',
    '$text {Will the customer buy again?|Will this customer come back?|Would they buy it again?}',
    '{Buy again, yes or no|Coming back, yes or no|Will they come back}? $text',
    '{Is this a customer who comes back|Will we see this customer again}? $text',
  ],
  test: [
    '{Is this customer likely to come back|Do you think the customer will buy again}? $text',
    '$text {Will we see this customer again?|Will they buy it again, yes or no?}',
  ],
};

function again(draw: Draw): Drawn {
  const { stars: count, text } = review(draw);
  const probability = COMES_BACK[count];
  const answer = draw.chance(probability) ? 'Yes.' : 'No.';
  const likely = probability > 0.5 ? ['Yes.'] : probability < 0.5 ? ['No.'] : ['Yes.', 'No.'];
  return { prompt: draw.say(ASK_AGAIN, { text }), answers: likely, answer, options: ['Yes', 'No'], probability };
}

/** Messages by the team that handles them. */
const MESSAGES: Readonly<Record<string, Patterns>> = {
  Billing: {
    train: [
      'I was charged twice',
      '{My|The} {invoice|bill} is {wrong|too high|not right}',
      'I paid but got no {receipt|invoice}',
      'Please send me the {invoice|receipt|bill} again',
      'My {card|payment} was declined',
      'You took too much money from my {card|account}',
      '{How|When} do I pay the {bill|invoice}',
      'I want to change my {card|payment}',
      'The payment did not work',
    ],
    test: ['The {invoice|bill} has the wrong sum', 'You charged my card twice', 'I paid the {bill|invoice} twice'],
  },
  Shipping: {
    train: [
      'My {parcel|order|package} has not arrived',
      'The {delivery|parcel|package} is {late|too late}',
      'Where is my {parcel|order|package}',
      'The {parcel|package} went to the wrong address',
      'I want to change the delivery address',
      'The driver did not ring',
      'The {box|parcel} was left in the rain',
      'When {will my order|does my parcel|will the package} arrive',
      '{Nothing|My parcel never} {arrived|came}',
    ],
    test: ['The {parcel|order} did not arrive', 'The driver went to the wrong address', 'When will the delivery come'],
  },
  Repairs: {
    train: [
      'The {screen|lamp|handle|lid} is {broken|cracked}',
      'It does not turn on{| any more}',
      'The {handle|button|wheel} fell off',
      'It makes a strange noise',
      'The battery is {dead|empty|broken}',
      'The {button|door|lid} is stuck',
      'Water comes out of it',
      '{My|The} {phone|radio|lamp} stopped working',
      'Can you fix my {phone|radio|lamp|clock}',
    ],
    test: ['The {battery|handle} is broken', 'The screen makes a strange noise', 'The {radio|phone} does not turn on'],
  },
  Sales: {
    train: [
      'Do you have it in {blue|red|green}',
      'I want to buy {ten|twenty|more} of them',
      'Is there a discount for students',
      'Which {model|one} is better',
      'When is it back in stock',
      'Do you sell {bags|tables|chairs}',
      'I would like {an offer|a price|a catalogue}',
      'How much {is|would be} a {big|new|blue} one',
      'What does the {new|big} model cost',
    ],
    test: ['Do you have a discount', 'I would like to buy {ten|twenty} bags', 'How much is the {blue|new} model'],
  },
};

const ASK_TEAM: Patterns = {
  train: [
    'Which team should {handle|get|answer|take} this{, $teams|}? $text',
    '{Team|The team|Route}{ ($teams)|}: $text',
    '$text {Which team|What team|Who handles this}{, $teams|}?',
    '{Send this to|Choose|Pick} $teams: $text',
    '{Which team|What team|Who should answer}{, $teams|}? $text',
  ],
  test: [
    'Who takes care of this, $teams? $text',
    '{Which team is this for|Which team handles it}{, $teams|}? $text',
    '$text {Which team should handle that?|Choose $teams.}',
  ],
};

function triage(draw: Draw): Drawn {
  const options = Object.keys(MESSAGES);
  const team = draw.pick(options);
  const text = draw.say(
    [
      '{|Hello. |Hi, help please. |It is about my $item. |About order $order: |Good morning. }$s{.|!|. Thanks.|, please help.|}',
    ],
    { item: singular(draw.things()), order: draw.orderNumber(), s: draw.say(MESSAGES[team]) },
  );
  const names = draw.several(options, 4).map((name) => name.toLowerCase());
  const prompt = draw.say(ASK_TEAM, { text, teams: `${names.slice(0, 3).join(', ')} or ${names[3]}` });
  return { prompt, answers: [`${team}.`], options };
}

export const REVIEW_INTENTS = { sentiment, stars, again, triage } satisfies Record<string, Intent>;
