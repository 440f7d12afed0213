// Errors of the server, in OpenAI's shape.
import { isDUltraError, isOptionError } from '../errors';

const LONGEST_MESSAGE = 2000;
const LONGEST_PARAM = 200;

type Status = 400 | 401 | 403 | 404 | 405 | 413 | 415 | 429 | 500 | 503 | 504;

/** An error that a request is answered with. */
export class ApiError extends Error {
  constructor(
    readonly status: Status,
    readonly code: string,
    message: string,
    /** The field of the request that it is about. */
    readonly param: string | null = null,
    readonly headers: Readonly<Record<string, string>> = {},
  ) {
    super(message);
    this.name = 'ApiError';
  }

  /** The body of the answer. */
  get body() {
    const { status, code } = this;
    // What a request brings may be long.
    const message = this.message.slice(0, LONGEST_MESSAGE);
    const param = this.param?.slice(0, LONGEST_PARAM) ?? null;
    const type = status === 429 ? 'rate_limit_error' : status >= 500 ? 'server_error' : 'invalid_request_error';
    return { error: { message, type, param, code } };
  }
}

/** The same request would fail in the same way: clients are told not to send it again. */
const HOPELESS = { 'x-should-retry': 'false' };
const LATER = { 'retry-after': '5' };

/** Fields of requests, by the library's names. */
const FIELDS: Readonly<Record<string, string>> = {
  maxTokens: 'max_tokens',
  blockLength: 'block_length',
  topK: 'top_k',
  topP: 'top_p',
  promptIds: 'prompt',
};

/** What was thrown, as an answer. Messages of what nobody foresaw stay in the log. */
export function apiErrorOf(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  if (isOptionError(error)) {
    const [name] = error.option.split(/[.[]/);
    const param = (FIELDS[name] ?? name) + error.option.slice(name.length);
    return new ApiError(400, 'invalid_value', `${param}${error.message.slice(error.option.length)}`, param);
  }
  if (!isDUltraError(error)) return new ApiError(500, 'internal_error', 'the server failed', null, HOPELESS);
  const { code, message } = error;
  switch (code) {
    case 'OVERLOADED':
      return new ApiError(429, 'engine_overloaded', message, null, LATER);
    case 'DEADLINE_EXCEEDED':
      return new ApiError(504, 'deadline_exceeded', message, null, HOPELESS);
    case 'OUT_OF_MEMORY':
      return new ApiError(503, 'out_of_memory', message, null, LATER);
    case 'NON_FINITE':
    case 'NO_PROGRESS':
      return new ApiError(500, code.toLowerCase(), message, null, HOPELESS);
    case 'NO_PLANNER':
      return new ApiError(400, 'unsupported_value', message, 'sampler');
    case 'NO_TOKENIZER':
      return new ApiError(400, 'unsupported_value', message);
    default:
      return new ApiError(500, 'internal_error', 'the server failed', null, HOPELESS);
  }
}
