// Chat completions and completions, in OpenAI's form.
import type { PreparedRow } from '../generation/prepare';
import type { GenerateResult, StreamEvent } from '../generation/types';
import { decodeIds } from '../model/prompt';
import type { ChatMessage, PlainPrompt } from '../types';
import { type ChatBody, type CompletionBody, chatBody, checkBody, completionBody } from './body';
import { ApiError } from './errors';
import { type GenerationRequest, generationRequest, type Wanted } from './generation';
import { type Answering, type Call, finishOf, type Outcome, type StreamWriter } from './routes';
import type { TokenLogprob, TopTokens } from './top-tokens';

/** Stands for a mask in the texts of `diffusing`. */
const MASK = '░';

/** How a route answers. */
interface Kind {
  prefix: string;
  /** `object` of an answer, and of a chunk of a stream. */
  object: string;
  chunk: string;
  /** The first chunk of a choice; null: there is none. */
  opening: ((index: number) => object) | null;
  piece: (index: number, text: string, finish: string | null, logprobs: object | null) => object;
  choice: (index: number, result: GenerateResult, text: string, logprobs: object | null) => object;
  logprobs: (tokens: readonly (TokenLogprob & { top: TokenLogprob[] })[], offset: number) => object;
}

const COMPLETION: Kind = {
  prefix: 'cmpl',
  object: 'text_completion',
  chunk: 'text_completion',
  opening: null,
  piece: (index, text, finish, logprobs) => ({ index, text, logprobs, finish_reason: finish }),
  choice: (index, result, text, logprobs) => ({ index, text, logprobs, finish_reason: finishOf(result) }),
  logprobs(tokens, offset) {
    let at = offset;
    return {
      tokens: tokens.map(({ token }) => token),
      token_logprobs: tokens.map(({ logprob }) => logprob),
      top_logprobs: tokens.some(({ top }) => top.length > 0)
        ? tokens.map(({ top }) => Object.fromEntries(top.map(({ token, logprob }) => [token, logprob])))
        : null,
      text_offset: tokens.map(({ token }) => {
        at += token.length;
        return at - token.length;
      }),
    };
  },
};

const CHAT: Kind = {
  prefix: 'chatcmpl',
  object: 'chat.completion',
  chunk: 'chat.completion.chunk',
  opening: (index) => ({ index, delta: { role: 'assistant', content: '' }, finish_reason: null }),
  piece: (index, text, finish, logprobs) => ({
    index,
    delta: text === '' && finish !== null ? {} : { content: text },
    ...(logprobs && { logprobs }),
    finish_reason: finish,
  }),
  choice: (index, result, text, logprobs) => ({
    index,
    message: { role: 'assistant', content: text, refusal: null },
    logprobs,
    finish_reason: finishOf(result),
  }),
  logprobs: (tokens) => ({
    content: tokens.map(({ top, ...token }) => ({ ...token, top_logprobs: top })),
    refusal: null,
  }),
};

/** Log-probabilities of the tokens, each when it was decided. */
function tokensOf(
  choice: number,
  { logprobs, ids, tokens, promptIds }: GenerateResult,
  { parts, isTemplate }: GenerationRequest,
  top: TopTokens | null,
) {
  if (!logprobs) return null;
  const begin = isTemplate ? 0 : promptIds.length;
  return Array.from(ids.subarray(0, tokens), (id, i) => {
    const token = decodeIds([id], parts);
    const best = top?.at(choice, begin + i) ?? [];
    // JSON has no number for what no pass decided.
    const logprob = Number.isFinite(logprobs[i]) ? logprobs[i] : -9999;
    return { token, bytes: [...Buffer.from(token)], logprob, top: best };
  });
}

/** The messages of a chat, in the words of chat templates. */
export function messagesOf(
  messages: readonly { role: string; content: string | readonly { text: string }[] }[],
): ChatMessage[] {
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

/** What of a body says how its answer is written. */
type Written = Pick<ChatBody, 'stream_options' | 'diffusing'> & { echo?: boolean | undefined };

function wholeOf(kind: Kind, body: Written) {
  return ({ head, request, top }: Answering, { results, usage }: Outcome, ms: number): object => ({
    id: head.id,
    object: kind.object,
    created: head.created,
    model: head.model,
    choices: results.map((result, index) => {
      const before = body.echo ? decodeIds(result.promptIds, request.parts) : '';
      const tokens = tokensOf(index, result, request, top);
      return kind.choice(index, result, before + result.text, tokens && kind.logprobs(tokens, before.length));
    }),
    usage,
    dultra: { ...request.settings, total_ms: ms },
  });
}

/** What a pass decided; positions count from the completion's start. */
const frameOf = (index: number, { step, remaining, unmasked }: StreamEvent) => ({ index, step, remaining, unmasked });

/** A row before its first pass: how long it is, and what is given of it. */
function canvasOf(index: number, { ids, begin, end }: PreparedRow, { parts }: GenerationRequest) {
  const given = Array.from(ids.subarray(begin, end), (token, position) => ({ position, token })).filter(
    ({ token }) => token !== parts.config.maskTokenId,
  );
  return {
    index,
    length: end - begin,
    given: given.map(({ position, token }) => ({ position, token, text: decodeIds([token], parts) })),
  };
}

/** The whole of a row as text, with a sign for each mask. */
function diffusedText(ids: Int32Array, { parts }: GenerationRequest): { text: string; share: number } {
  const { maskTokenId, eosTokenIds } = parts.config;
  let text = '';
  let masks = 0;
  for (let from = 0; from < ids.length; ) {
    if (ids[from] === maskTokenId) {
      text += MASK;
      masks++;
      from++;
      continue;
    }
    let to = from;
    while (to < ids.length && ids[to] !== maskTokenId && !eosTokenIds.includes(ids[to])) to++;
    text += decodeIds(ids.subarray(from, to), parts);
    // Nothing follows an end of sequence.
    if (to < ids.length && ids[to] !== maskTokenId) break;
    from = to;
  }
  return { text, share: 1 - masks / ids.length };
}

function writerOf(kind: Kind, body: Written) {
  return (answering: Answering, send: (data: unknown) => void): StreamWriter => {
    const { head, request, top } = answering;
    const withUsage = body.stream_options?.include_usage === true;
    const isDiffusing = body.diffusing === true;
    const chunk = (choices: object[], more: object = {}) =>
      send({
        id: head.id,
        object: kind.chunk,
        created: head.created,
        model: head.model,
        choices,
        ...(withUsage && { usage: null }),
        ...more,
      });
    const diffused = (index: number, ids: Int32Array) => {
      const { text, share } = diffusedText(ids, request);
      const meta = { diffusion_content: true, diffusion_progress: share };
      chunk([kind.piece(index, text, null, null)], { diffusion_meta: meta });
    };
    return {
      open(rows) {
        if (kind.opening) for (let index = 0; index < rows.length; index++) chunk([kind.opening(index)]);
        for (const [index, row] of rows.entries()) {
          if (request.frames) chunk([], { dultra: { canvas: canvasOf(index, row, request) } });
          const before = body.echo ? decodeIds(row.promptIds, request.parts) : '';
          if (before !== '') chunk([kind.piece(index, before, null, null)]);
        }
      },
      event(index, event) {
        if (request.frames) chunk([], { dultra: { frame: frameOf(index, event) } });
        if (isDiffusing && !event.result) diffused(index, event.ids);
        else if (isDiffusing) chunk([kind.piece(index, event.text, null, null)]);
        else if (event.delta !== '') chunk([kind.piece(index, event.delta, null, null)]);
        if (event.result && !request.options.logprobs) chunk([kind.piece(index, '', finishOf(event.result), null)]);
      },
      finish({ results, usage }) {
        if (request.options.logprobs)
          for (const [index, result] of results.entries()) {
            const before = body.echo ? decodeIds(result.promptIds, request.parts).length : 0;
            const logprobs = kind.logprobs(tokensOf(index, result, request, top)!, before);
            chunk([kind.piece(index, '', finishOf(result), logprobs)]);
          }
        if (withUsage) chunk([], { usage });
        send('[DONE]');
      },
      fail: (error) => send(error.body),
    };
  };
}

function callOf(kind: Kind, body: Call['body'] & Written, topLogprobs: number, prepare: Call['prepare']): Call {
  if (body.diffusing && !body.stream)
    throw new ApiError(400, 'invalid_value', 'diffusing: expected together with stream', 'diffusing');
  if (body.echo && (body.diffusing || body.dultra?.template))
    throw new ApiError(400, 'unsupported_value', 'echo: not supported with diffusing or a template', 'echo');
  return { body, prefix: kind.prefix, topLogprobs, prepare, whole: wholeOf(kind, body), writer: writerOf(kind, body) };
}

/** The schema that a chat's answer is a value of. */
function schemaOf({ response_format: format }: ChatBody): Wanted['schema'] {
  if (format?.type === 'json_object') return { value: 'object', path: 'response_format' };
  if (format?.type !== 'json_schema') return undefined;
  return { value: format.json_schema.schema, path: 'response_format.json_schema.schema' };
}

/** POST /v1/chat/completions. @throws ApiError */
export function chatCall(value: unknown): Call {
  const body = checkBody(chatBody, value);
  const { max_tokens: older, max_completion_tokens: newer, top_logprobs: topLogprobs = 0 } = body;
  if (older !== undefined && newer !== undefined && older !== newer)
    throw new ApiError(400, 'invalid_value', 'max_tokens and max_completion_tokens say different things', 'max_tokens');
  const logprobs = body.logprobs === true;
  if (topLogprobs > 0 && !logprobs)
    throw new ApiError(400, 'invalid_value', 'top_logprobs: expected together with logprobs: true', 'top_logprobs');
  return callOf(CHAT, body, topLogprobs, async (model, signal) => {
    if (!model.tokenizer?.hasChatTemplate)
      throw new ApiError(400, 'unsupported_value', 'this model has no chat template: use /v1/completions', 'model');
    const prompts = [messagesOf(body.messages)];
    const wanted = { prompts, maxTokens: newer ?? older, logprobs, schema: schemaOf(body) };
    return generationRequest(model, body, wanted, signal);
  });
}

/** POST /v1/completions and /v1/fim/completions. @throws ApiError */
export function completionCall(value: unknown): Call {
  const body = checkBody(completionBody, value);
  const { logprobs, max_tokens: maxTokens } = body;
  // An empty one is none, as clients that always send the field mean it.
  const suffix = body.suffix || undefined;
  const wanted = { prompts: promptsOf(body), maxTokens, logprobs: logprobs !== undefined, suffix };
  return callOf(COMPLETION, body, logprobs ?? 0, (model, signal) => generationRequest(model, body, wanted, signal));
}
