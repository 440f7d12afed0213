// POST /v1/decisions and /v1/systemone: questions with one answer out of a few, in two forms.
import { z } from 'zod';
import { type DecideOptions, type DecisionAnswer, type Decisions, decide } from '../decisions/decide';
import { LIMITS, type Question } from '../decisions/questions';
import { isOptionError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import type { ChatMessage } from '../types';
import { checkBody, IGNORED, ignored, optional } from './body';
import { messagesOf } from './completions';
import { ApiError } from './errors';
import type { Served } from './routes';

/** A request whose body has been checked, and how it is answered. */
export interface DecisionCall {
  body: { model?: string | undefined };
  decide: (name: string, model: MaskedDiffusionModel, signal: AbortSignal, served: Served) => Promise<object>;
}

const breakpoint = { prompt_cache_breakpoint: ignored };
const parts = z.array(
  z.discriminatedUnion('type', [
    z.strictObject({ type: z.literal('input_text'), text: z.string(), ...breakpoint }),
    z.strictObject({ type: z.literal('output_text'), text: z.string(), annotations: ignored }),
    z.strictObject({ type: z.literal('refusal'), refusal: z.string() }),
    z.strictObject({
      type: z.literal('input_json'),
      data: z.union([z.record(z.string(), z.unknown()), z.array(z.unknown())]),
    }),
  ]),
);
type Words = string | z.infer<typeof parts>;
const words = z.union(
  [z.string(), parts],
  'expected a text, or a list of parts of type "input_text", "input_json", "output_text" or "refusal"',
);
const instructions = words.refine((value) => textOf(value).trim() !== '', 'expected instructions that say something');
const name = optional(z.string());
const description = optional(z.string());

/** What is said: values of JSON are read as such. */
const textOf = (value: Words): string =>
  typeof value === 'string'
    ? value
    : value
        .map((part) =>
          part.type === 'input_json' ? JSON.stringify(part.data) : part.type === 'refusal' ? part.refusal : part.text,
        )
        .join('');

/** What both routes take besides, in `dultra`. */
const DECIDING = {
  scorer: optional(z.enum(['token', 'label', 'chain', 'joint'])),
  orders: optional(z.int().min(1).max(2)),
  prior: optional(z.boolean()),
  min_option_mass: optional(z.number().min(0).max(1)),
  confidence: optional(z.enum(['jev', 'entropy'])),
  calibration: optional(z.literal('none')),
  priority: optional(z.int().min(0).max(9)),
  deadline_ms: optional(
    z
      .int()
      .min(1)
      .max(2 ** 31 - 1),
  ),
};
const deciding = z.strictObject(DECIDING);

const isUnique = (choices: readonly { value: string | boolean }[]) =>
  new Set(choices.map(({ value }) => value)).size === choices.length;

/** POST /v1/decisions */
const decisionsBody = z.strictObject({
  model: optional(z.string()),
  /** A text has become the message of a user. */
  input: z
    .array(
      z.strictObject({
        type: optional(z.literal('message')),
        role: z.enum(['system', 'developer', 'user', 'assistant']),
        content: words,
        id: ignored,
        status: ignored,
        phase: ignored,
      }),
    )
    .min(1),
  questions: z
    .array(
      z.discriminatedUnion('type', [
        z.strictObject({ type: z.literal('predicate'), instructions, name }),
        z.strictObject({
          type: z.literal('choice'),
          instructions,
          name,
          choices: z
            .array(z.strictObject({ value: z.union([z.string().min(1), z.boolean()]), description }))
            .min(2)
            .max(LIMITS.options)
            .refine(isUnique, 'expected values that differ'),
        }),
        z.strictObject({
          type: z.literal('score'),
          instructions,
          name,
          levels: z
            .array(z.strictObject({ label: z.string().min(1), description }))
            .min(2)
            .max(LIMITS.levels),
        }),
      ]),
    )
    .min(1)
    .max(LIMITS.questions),
  dultra: optional(deciding),
  prompt_cache_options: ignored,
  ...IGNORED,
});
type DecisionsBody = z.infer<typeof decisionsBody>;

const asked = z.string().refine((value) => value.trim() !== '', 'expected instructions that say something');
const noul = z.strictObject({
  type: z.literal('noul'),
  instructions: asked,
  criteria: optional(z.strictObject({ true: description, false: description })),
});

/** POST /v1/systemone */
const systemOneBody = z.strictObject({
  model: optional(z.string()),
  state: z.union(
    [z.string(), z.record(z.string(), z.unknown()), z.array(z.unknown())],
    'expected a text, an object or a list',
  ),
  questions: z
    .record(
      z.string(),
      z.discriminatedUnion('type', [
        noul,
        z.strictObject({
          type: z.literal('choice'),
          instructions: asked,
          criteria: z.record(z.string().min(1), z.string().nullable()),
        }),
        z.strictObject({ type: z.literal('score'), instructions: asked, criteria: z.array(z.string()) }),
      ]),
    )
    .refine((value) => Object.keys(value).length > 0, 'expected at least one question'),
  /** true: what else there is to say is said, too. */
  dultra: optional(z.union([z.boolean(), deciding], 'expected true, or an object')),
});
type SystemOneBody = z.infer<typeof systemOneBody>;

/** Options of `decide`, and how its rows are scheduled. */
function optionsOf(own: z.infer<typeof deciding> | undefined, signal: AbortSignal) {
  const { priority, deadline_ms: deadline, min_option_mass: minOptionMass, ...rest } = own ?? {};
  const settings = Object.fromEntries(
    Object.entries({ ...rest, minOptionMass }).filter(([, value]) => value !== undefined),
  ) as DecideOptions;
  const submit = {
    ...(priority !== undefined && { priority }),
    ...(deadline !== undefined && { deadline: performance.now() + deadline }),
  };
  return { settings, options: { ...settings, signal }, submit };
}

/** Decides, and notes it for the log and the metrics. */
async function run(
  model: MaskedDiffusionModel,
  state: Parameters<typeof decide>[1],
  questions: Readonly<Record<string, Question>>,
  own: z.infer<typeof deciding> | undefined,
  signal: AbortSignal,
  served: Served,
): Promise<Decisions> {
  const { settings, options, submit } = optionsOf(own, signal);
  served.settings = { ...settings };
  const result = await decide(model.engineParts(), state, questions, options, submit);
  const { inputTokens, rows, fullForwards } = result.usage;
  served.usage = {
    prompt_tokens: inputTokens,
    completion_tokens: 0,
    total_tokens: inputTokens,
    nfe: rows,
    full_forwards: fullForwards,
    tokens_per_forward: 0,
    prompt_tokens_details: { cached_tokens: 0 },
  };
  served.decisions = Object.values(questions).map(({ type }) => type);
  return result;
}

const basisOf = ({ optionMass, temperature, scorer }: DecisionAnswer) => ({
  option_mass: optionMass,
  temperature,
  scorer,
});

/** The messages of /v1/decisions, or the text where there is one message of a user alone. */
const stateOf = (input: DecisionsBody['input']): string | ChatMessage[] =>
  input.length === 1 && input[0].role === 'user'
    ? textOf(input[0].content)
    : messagesOf(input.map(({ role, content }) => ({ role, content: textOf(content) })));

/** Values of a choice as names: a text that reads like a boolean beside it is written in quotes. */
function namesOf(choices: readonly { value: string | boolean }[]): string[] {
  const booleans = new Set(choices.filter(({ value }) => typeof value === 'boolean').map(({ value }) => String(value)));
  return choices.map(({ value }) =>
    typeof value === 'string' && booleans.has(value) ? JSON.stringify(value) : String(value),
  );
}

/** A question of /v1/decisions, as the library has it. */
function questionOf(question: DecisionsBody['questions'][number]): Question {
  const text = textOf(question.instructions);
  if (question.type === 'predicate') return { type: 'boolean', instructions: text };
  if (question.type === 'choice') {
    const names = namesOf(question.choices);
    const criteria = Object.fromEntries(question.choices.map(({ description }, i) => [names[i], description ?? null]));
    return { type: 'choice', instructions: text, criteria };
  }
  const criteria = question.levels.map(({ label, description }) =>
    description === undefined ? label : `${label}: ${description}`,
  );
  return { type: 'score', instructions: text, criteria };
}

/** An answer in the form of /v1/decisions. */
function answerOf(question: DecisionsBody['questions'][number], answer: DecisionAnswer) {
  const named = { name: question.name ?? null };
  if (question.type === 'predicate' && answer.type === 'boolean')
    return { type: 'predicate', ...named, probability: answer.probability };
  if (question.type === 'choice' && answer.type === 'choice') {
    const names = namesOf(question.choices);
    const { choice, confidence, probabilities } = answer;
    return {
      type: 'choice',
      ...named,
      choice: question.choices[names.indexOf(choice)].value,
      confidence,
      probabilities: question.choices.map(({ value }, i) => ({ value, probability: probabilities[names[i]] })),
    };
  }
  if (question.type === 'score' && answer.type === 'score') {
    const { score, confidence, probabilities } = answer;
    return {
      type: 'score',
      ...named,
      score,
      confidence,
      probabilities: question.levels.map(({ label }, value) => ({ label, value, probability: probabilities[value] })),
    };
  }
  return { type: 'refusal', ...named };
}

/** What the library says of questions and state, with the names of a request. */
function requestError(error: unknown): unknown {
  if (!isOptionError(error)) return error;
  const { option, message } = error;
  const isLong = option === 'state';
  const param = isLong ? 'input' : option.replace(/^questions\.(\d+)/, 'questions[$1]');
  return new ApiError(
    400,
    isLong ? 'context_length_exceeded' : 'invalid_value',
    `${param}${message.slice(option.length)}`,
    param,
  );
}

/** POST /v1/decisions. @throws ApiError */
export function decisionsCall(value: unknown): DecisionCall {
  const input = (value as { input?: unknown } | null)?.input;
  const given = typeof input === 'string' ? { ...(value as object), input: [{ role: 'user', content: input }] } : value;
  const body = checkBody(decisionsBody, given, DECIDING);
  return {
    body,
    async decide(model, loaded, signal, served) {
      // Questions need no names, so that their places are.
      const questions = Object.fromEntries(body.questions.map((question, i) => [String(i), questionOf(question)]));
      const result = await run(loaded, stateOf(body.input), questions, body.dultra, signal, served).catch((error) => {
        throw requestError(error);
      });
      const { answers, usage, calibrated, warnings } = result;
      return {
        model,
        answers: body.questions.map((question, i) => answerOf(question, answers[i])),
        usage: {
          input_tokens: usage.inputTokens,
          input_tokens_details: { cached_tokens: 0, cache_write_tokens: 0 },
          output_tokens: 0,
          output_tokens_details: { reasoning_tokens: 0 },
          total_tokens: usage.inputTokens,
        },
        dultra: {
          calibrated,
          warnings,
          rows: usage.rows,
          answers: body.questions.map((_question, i) => basisOf(answers[i])),
        },
      };
    },
  };
}

/** An answer in the form of /v1/systemone. */
function systemOneAnswer(answer: DecisionAnswer) {
  if (answer.type === 'boolean') return { type: 'noul', noul: answer.probability };
  if (answer.type === 'choice') {
    const { choice, probabilities, confidence } = answer;
    return { type: 'choice', choice, probabilities, confidence };
  }
  if (answer.type === 'refusal') return { type: 'refusal' };
  const { score, legend, probabilities, confidence } = answer;
  return { type: 'score', score, legend, probabilities: Object.fromEntries(Object.entries(probabilities)), confidence };
}

/** A question of /v1/systemone, as the library has it. */
function systemOneQuestion(question: SystemOneBody['questions'][string]): Question {
  if (question.type !== 'noul') return question;
  const { criteria, instructions: text } = question;
  return { type: 'boolean', instructions: text, ...(criteria && { criteria }) };
}

/** POST /v1/systemone. @throws ApiError */
export function systemOneCall(value: unknown): DecisionCall {
  const body = checkBody(systemOneBody, value, DECIDING);
  const own = typeof body.dultra === 'object' ? body.dultra : undefined;
  return {
    body,
    async decide(model, loaded, signal, served) {
      const questions = Object.fromEntries(
        Object.entries(body.questions).map(([key, question]) => [key, systemOneQuestion(question)]),
      );
      const { answers, usage, calibrated, warnings } = await run(loaded, body.state, questions, own, signal, served);
      const entries = Object.entries(answers);
      return {
        model,
        answers: Object.fromEntries(entries.map(([key, answer]) => [key, systemOneAnswer(answer)])),
        usage: { input_tokens: usage.inputTokens, output_tokens: 0 },
        ...(body.dultra && {
          calibrated,
          warnings,
          dultra: {
            rows: usage.rows,
            answers: Object.fromEntries(entries.map(([key, answer]) => [key, basisOf(answer)])),
          },
        }),
      };
    },
  };
}
