// POST /v1/responses: one message, in the form of OpenAI's newer API. Nothing is stored.
import { randomUUID } from 'node:crypto';
import type { GenerateResult } from '../generation/types';
import { checkBody, type ResponseBody, responseBody } from './body';
import { messagesOf } from './completions';
import { ApiError } from './errors';
import { generationRequest, type Wanted } from './generation';
import type { Answering, Call, Outcome, StreamWriter, Usage } from './routes';

/** What does not change while it is written. */
function partsOf(body: ResponseBody, { head, request }: Answering) {
  const { temperature = 0, top_p: topP = 1 } = body;
  return {
    id: head.id,
    object: 'response',
    created_at: head.created,
    model: head.model,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    metadata: body.metadata ?? {},
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    previous_response_id: null,
    store: false,
    temperature,
    text: { format: body.text?.format ?? { type: 'text' } },
    tool_choice: body.tool_choice ?? 'auto',
    tools: [],
    top_p: topP,
    truncation: 'disabled',
    dultra: request.settings,
  };
}

const usageOf = ({ prompt_tokens: input, completion_tokens: output, total_tokens: total, ...usage }: Usage) => ({
  input_tokens: input,
  input_tokens_details: { cached_tokens: 0, cache_write_tokens: 0 },
  output_tokens: output,
  output_tokens_details: { reasoning_tokens: 0 },
  total_tokens: total,
  nfe: usage.nfe,
  full_forwards: usage.full_forwards,
  tokens_per_forward: usage.tokens_per_forward,
});

const textPart = (text: string) => ({ type: 'output_text', text, annotations: [] });

const message = (id: string, status: string, content: object[]) => ({
  type: 'message',
  id,
  role: 'assistant',
  status,
  content,
});

/** How a response ends: the model's end of text, or the most tokens. */
const endOf = ({ finishReason }: GenerateResult) =>
  finishReason === 'length'
    ? { status: 'incomplete', incomplete_details: { reason: 'max_output_tokens' } }
    : { status: 'completed', incomplete_details: null };

function whole(body: ResponseBody, answering: Answering, { results: [result], usage }: Outcome, messageId: string) {
  const end = endOf(result);
  return {
    ...partsOf(body, answering),
    ...end,
    error: null,
    output: [message(messageId, end.status, [textPart(result.text)])],
    usage: usageOf(usage),
  };
}

function writer(body: ResponseBody, answering: Answering, send: (data: unknown, event?: string) => void): StreamWriter {
  const messageId = `msg-${randomUUID()}`;
  let sequence = 0;
  const emit = (type: string, fields: object) => send({ type, sequence_number: sequence++, ...fields }, type);
  const at = { item_id: messageId, output_index: 0, content_index: 0 };
  const pending = {
    ...partsOf(body, answering),
    status: 'in_progress',
    incomplete_details: null,
    error: null,
    output: [],
    usage: null,
  };
  return {
    open() {
      emit('response.created', { response: pending });
      emit('response.in_progress', { response: pending });
      emit('response.output_item.added', { output_index: 0, item: message(messageId, 'in_progress', []) });
      emit('response.content_part.added', { ...at, part: textPart('') });
    },
    event(_choice, { delta }) {
      if (delta !== '') emit('response.output_text.delta', { ...at, delta, logprobs: [] });
    },
    finish(outcome) {
      const [result] = outcome.results;
      const response = whole(body, answering, outcome, messageId);
      emit('response.output_text.done', { ...at, text: result.text, logprobs: [] });
      emit('response.content_part.done', { ...at, part: textPart(result.text) });
      emit('response.output_item.done', { output_index: 0, item: response.output[0] });
      emit(`response.${response.status}`, { response });
    },
    fail(error) {
      const { message: text, code, param } = error.body.error;
      emit('error', { code, message: text, param, error: error.body.error });
    },
  };
}

/** The schema that the message is a value of. */
function schemaOf({ text }: ResponseBody): Wanted['schema'] {
  const format = text?.format;
  if (format?.type === 'json_object') return { value: 'object', path: 'text.format' };
  return format?.type === 'json_schema' ? { value: format.schema, path: 'text.format.schema' } : undefined;
}

/** POST /v1/responses. @throws ApiError */
export function responseCall(value: unknown): Call {
  const input = (value as { input?: unknown } | null)?.input;
  // A text is the message of a user.
  const given = typeof input === 'string' ? { ...(value as object), input: [{ role: 'user', content: input }] } : value;
  const body = checkBody(responseBody, given);
  return {
    body,
    prefix: 'resp',
    topLogprobs: 0,
    async prepare(model, signal) {
      if (!model.tokenizer?.hasChatTemplate)
        throw new ApiError(400, 'unsupported_value', 'this model has no chat template: use /v1/completions', 'model');
      const system = body.instructions === undefined ? [] : [{ role: 'system', content: body.instructions }];
      const prompts = [messagesOf([...system, ...body.input])];
      const wanted = { prompts, maxTokens: body.max_output_tokens, logprobs: false, schema: schemaOf(body) };
      return generationRequest(model, body, wanted, signal);
    },
    whole: (answering, outcome) => whole(body, answering, outcome, `msg-${randomUUID()}`),
    writer: (answering, send) => writer(body, answering, send),
  };
}
