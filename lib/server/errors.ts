// Errors of the server, in OpenAI's shape.
import { isDUltraError, isOptionError } from '../errors';

const LONGEST_MESSAGE = 2000;
const LONGEST_PARAM = 200;

type Status = 400 | 401 | 403 | 404 | 405 | 413 | 415 | 422 | 429 | 500 | 503 | 504;

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

  /** The same, with the time after which the request may be sent again: 1 to 60 seconds. */
  after(seconds: number): ApiError {
    const { status, code, message, param } = this;
    const wait = Math.min(60, Math.max(1, seconds));
    const headers = {
      ...this.headers,
      'retry-after': `${Math.ceil(wait)}`,
      'retry-after-ms': `${Math.ceil(1000 * wait)}`,
    };
    return new ApiError(status, code, message, param, headers);
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

/** Codes of a body that is JSON, but says what cannot be done. */
const UNPROCESSABLE = [
  ...['invalid_value', 'missing_required_parameter', 'unknown_parameter', 'unsupported_parameter', 'unsupported_value'],
  'context_length_exceeded',
];
const SYSTEM_ONE_TYPES: Readonly<Partial<Record<Status, string>>> = {
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  413: 'request_too_large_error',
  422: 'unprocessable_entity_error',
  503: 'unavailable_error',
};

/** An error in the form of /v1/systemone: its code is the status, and 422 is what a body says wrongly. */
export function systemOneError(error: ApiError): { status: Status; body: object } {
  const status = error.status === 400 && UNPROCESSABLE.includes(error.code) ? 422 : error.status;
  const { message, type } = error.body.error;
  return { status, body: { error: { code: status, message, type: SYSTEM_ONE_TYPES[status] ?? type } } };
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

/** A model that could not be loaded. Why stands in the log: it may name files. */
export const unloadable = (name: string, error: unknown): ApiError =>
  isDUltraError(error, 'OUT_OF_MEMORY')
    ? apiErrorOf(error)
    : new ApiError(503, 'model_unavailable', `the model ${JSON.stringify(name)} could not be loaded`, 'model', LATER);

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
      // What is about an option would not fit later either.
      if (error.option !== undefined) return new ApiError(400, 'unsupported_value', message, error.option);
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
