// Chat completions and completions: bodies in, answers or streams out.
import { randomUUID } from 'node:crypto';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import type { GenerateResult, StreamEvent } from '../generation/types';
import { decodeIds } from '../model/prompt';
import type { ChatMessage, PlainPrompt } from '../types';
import { type ChatBody, type CommonBody, type CompletionBody, chatBody, checkBody, completionBody } from './body';
import { ApiError, apiErrorOf } from './errors';
import { type GenerationRequest, generationRequest, runChoices, usageOf } from './generation';
import { EventStream } from './sse';

/** What a request's log line and metrics say of its generation. */
export interface Served {
  model: string;
  settings?: Record<string, unknown>;
  usage?: ReturnType<typeof usageOf>;
  finish?: string[];
  /** Of a stream that ended in an error behind its first byte. */
  error?: ApiError;
}

/** How a route answers. */
interface Kind {
  prefix: string;
  /** `object` of an answer, and of a chunk of a stream. */
  object: string;
  chunk: string;
  /** The first chunk of a choice; null: there is none. */
  opening: ((index: number) => object) | null;
  piece: (index: number, text: string, finish: string | null) => object;
  choice: (index: number, result: GenerateResult, request: GenerationRequest) => object;
}

const finishOf = ({ finishReason }: GenerateResult): string => (finishReason === 'length' ? 'length' : 'stop');

const COMPLETION: Kind = {
  prefix: 'cmpl',
  object: 'text_completion',
  chunk: 'text_completion',
  opening: null,
  piece: (index, text, finish) => ({ index, text, logprobs: null, finish_reason: finish }),
  choice: (index, result) => ({ index, text: result.text, logprobs: null, finish_reason: finishOf(result) }),
};

const CHAT: Kind = {
  prefix: 'chatcmpl',
  object: 'chat.completion',
  chunk: 'chat.completion.chunk',
  opening: (index) => ({ index, delta: { role: 'assistant', content: '' }, finish_reason: null }),
  piece: (index, text, finish) => ({
    index,
    delta: text === '' && finish !== null ? {} : { content: text },
    finish_reason: finish,
  }),
  choice: (index, result, request) => ({
    index,
    message: { role: 'assistant', content: result.text, refusal: null },
    logprobs: logprobsOf(result, request),
    finish_reason: finishOf(result),
  }),
};

/** Log-probabilities of the tokens, each when it was decided. */
function logprobsOf({ logprobs, ids, tokens }: GenerateResult, { parts }: GenerationRequest) {
  if (!logprobs) return null;
  const content = Array.from(ids.subarray(0, tokens), (id, i) => {
    const token = decodeIds([id], parts);
    return { token, bytes: [...Buffer.from(token)], logprob: logprobs[i], top_logprobs: [] };
  });
  return { content, refusal: null };
}

/** The messages of a chat, in the words of chat templates. */
function messagesOf({ messages }: ChatBody): ChatMessage[] {
  return messages.map(({ role, content }) => ({
    role: role === 'developer' ? 'system' : role,
    content: typeof content === 'string' ? content : content.map(({ text }) => text).join(''),
  }));
}

/** The prompts of a completion. */
function promptsOf({ prompt }: CompletionBody): PlainPrompt[] {
  if (typeof prompt === 'string') return [prompt];
  if (typeof prompt[0] === 'number') return [{ promptIds: prompt as number[] }];
  return (prompt as (string | number[])[]).map((one) => (typeof one === 'string' ? one : { promptIds: one }));
}

/** A request whose body has been checked, and how it is answered. */
export interface Call {
  body: CommonBody;
  kind: Kind;
  prepare: (model: MaskedDiffusionModel) => GenerationRequest;
}

/** POST /v1/chat/completions. @throws ApiError */
export function chatCall(value: unknown): Call {
  const body = checkBody(chatBody, value);
  const { max_tokens: older, max_completion_tokens: newer } = body;
  if (older !== undefined && newer !== undefined && older !== newer)
    throw new ApiError(400, 'invalid_value', 'max_tokens and max_completion_tokens say different things', 'max_tokens');
  const hasLogprobs = body.logprobs === true;
  if (hasLogprobs && body.stream)
    throw new ApiError(400, 'unsupported_parameter', 'logprobs: not supported in a stream', 'logprobs');
  return {
    body,
    kind: CHAT,
    prepare: (model) => {
      if (!model.tokenizer?.hasChatTemplate)
        throw new ApiError(400, 'unsupported_value', 'this model has no chat template: use /v1/completions', 'model');
      return generationRequest(model, body, [messagesOf(body)], newer ?? older, hasLogprobs);
    },
  };
}

/** POST /v1/completions. @throws ApiError */
export function completionCall(value: unknown): Call {
  const body = checkBody(completionBody, value);
  return {
    body,
    kind: COMPLETION,
    prepare: (model) => generationRequest(model, body, promptsOf(body), body.max_tokens, false),
  };
}

interface Head {
  id: string;
  created: number;
  model: string;
}

/** Runs a call. @param signal of the client's connection @param served is filled in on the way */
export async function answer(
  { body, kind, prepare }: Call,
  name: string,
  model: MaskedDiffusionModel,
  signal: AbortSignal,
  served: Served,
  done: () => void,
): Promise<Response> {
  const request = prepare(model);
  served.settings = request.settings;
  const head: Head = {
    id: `${kind.prefix}-${randomUUID()}`,
    created: Math.floor(Date.now() / 1000),
    model: name,
  };
  if (body.stream) return stream(request, body, kind, head, signal, served, done);
  const start = performance.now();
  const n = body.n ?? 1;
  const results = await runChoices(request, n, signal);
  note(served, request, n, results);
  done();
  return Response.json({
    id: head.id,
    object: kind.object,
    created: head.created,
    model: name,
    choices: results.map((result, index) => kind.choice(index, result, request)),
    usage: served.usage,
    dultra: { ...request.settings, total_ms: performance.now() - start },
  });
}

function note(served: Served, request: GenerationRequest, n: number, results: readonly GenerateResult[]): void {
  served.usage = usageOf(request, n, results);
  served.finish = results.map(finishOf);
}

/** Answers as a stream: what fails before a row is admitted is answered as an error with its status. */
function stream(
  request: GenerationRequest,
  body: CommonBody,
  kind: Kind,
  head: Head,
  signal: AbortSignal,
  served: Served,
  done: () => void,
): Promise<Response> {
  const gone = new AbortController();
  const leave = () => gone.abort(new Error('the client has left'));
  signal.addEventListener('abort', leave, { once: true });
  const events = new EventStream(leave);
  const withUsage = body.stream_options?.include_usage === true;
  const chunk = (choices: object[], more: object = {}) =>
    events.send({
      id: head.id,
      object: kind.chunk,
      created: head.created,
      model: head.model,
      choices,
      ...(withUsage && { usage: null }),
      ...more,
    });
  const n = body.n ?? 1;
  const onEvent = (index: number, event: StreamEvent) => {
    if (request.frames) chunk([], { dultra: { frame: frameOf(index, event) } });
    if (event.delta !== '') chunk([kind.piece(index, event.delta, null)]);
    if (event.result) chunk([kind.piece(index, '', finishOf(event.result))]);
  };
  return new Promise((resolve, reject) => {
    let isOpen = false;
    const onAdmit = () => {
      if (isOpen) return;
      isOpen = true;
      const headers = {
        'content-type': 'text/event-stream; charset=utf-8',
        'cache-control': 'no-cache',
        'x-accel-buffering': 'no',
      };
      const { opening } = kind;
      if (opening) for (let index = 0; index < request.prompts.length; index++) chunk([opening(index)]);
      resolve(new Response(events.body, { headers }));
    };
    runChoices(request, n, gone.signal, { onAdmit, onEvent })
      .then(
        (results) => {
          note(served, request, n, results);
          if (withUsage) chunk([], { usage: served.usage });
          events.send('[DONE]');
        },
        (error) => {
          served.error = gone.signal.aborted ? undefined : apiErrorOf(error);
          if (!isOpen) return reject(error);
          if (served.error) events.send(served.error.body);
        },
      )
      .finally(() => {
        signal.removeEventListener('abort', leave);
        events.close();
        if (isOpen) done();
      });
  });
}

/** What a pass decided; positions count from the completion's start. */
const frameOf = (index: number, { step, remaining, unmasked }: StreamEvent) => ({ index, step, remaining, unmasked });
