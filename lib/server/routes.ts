// Runs requests whose bodies have been checked: answers and streams, in the form of each route.
import { randomUUID } from 'node:crypto';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import type { PreparedRow } from '../generation/prepare';
import type { GenerateResult, StreamEvent } from '../generation/types';
import type { CommonBody } from './body';
import { type ApiError, apiErrorOf } from './errors';
import { type GenerationRequest, runChoices, usageOf } from './generation';
import { EventStream } from './sse';
import { TopTokens } from './top-tokens';

/** What a request's log line and metrics say of its generation. */
export interface Served {
  model: string;
  settings?: Record<string, unknown>;
  usage?: Usage;
  finish?: string[];
  /** Forward passes of each choice. */
  passes?: number[];
  /** Types of the questions that were decided. */
  decisions?: string[];
  /** Of a stream that ended in an error behind its first byte. */
  error?: ApiError;
}

/** Tokens and passes of an answer. */
export type Usage = ReturnType<typeof usageOf>;

/** What all parts of an answer have in common. */
export interface Head {
  id: string;
  /** Seconds since 1970. */
  created: number;
  model: string;
}

/** An answer that is being written. */
export interface Answering {
  head: Head;
  request: GenerationRequest;
  /** Choices of a prompt. */
  n: number;
  /** With `topLogprobs`: the most probable tokens of each position of each choice. */
  top: TopTokens | null;
}

/** What generation gave. */
export interface Outcome {
  results: readonly GenerateResult[];
  usage: Usage;
}

/** Writes a stream. */
export interface StreamWriter {
  /** Rows have been admitted. */
  open(rows: readonly PreparedRow[]): void;
  event(choice: number, event: StreamEvent): void;
  /** The end: everything has been generated. */
  finish(outcome: Outcome): void;
  fail(error: ApiError): void;
}

/** A request whose body has been checked, and how it is answered. */
export interface Call {
  body: CommonBody;
  /** Of the answer's id. */
  prefix: string;
  /** Most probable tokens that each position has beside its own. */
  topLogprobs: number;
  prepare: (model: MaskedDiffusionModel, signal: AbortSignal) => Promise<GenerationRequest>;
  /** The body of an answer that is no stream. */
  whole: (answering: Answering, outcome: Outcome, milliseconds: number) => object;
  /** @param send an event, as JSON; `event` names it */
  writer: (answering: Answering, send: (data: unknown, event?: string) => void) => StreamWriter;
}

/** `finish_reason` of a choice. */
export const finishOf = ({ finishReason }: GenerateResult): string => (finishReason === 'length' ? 'length' : 'stop');

/** A body and its headers: how they become a response is the server's, since some ways cost more than others. */
export interface Answered {
  body: string | ReadableStream<Uint8Array>;
  headers: Record<string, string>;
}

/** Runs a call. @param signal of the client's connection @param served is filled in on the way */
export async function answer(
  call: Call,
  name: string,
  model: MaskedDiffusionModel,
  signal: AbortSignal,
  served: Served,
  done: () => void,
): Promise<Answered> {
  // A server that has too much to do makes no tokens of what it refuses.
  model.engineParts().engine.checkRoom(call.body.n ?? 1);
  const request = await call.prepare(model, signal);
  served.settings = request.settings;
  const head: Head = { id: `${call.prefix}-${randomUUID()}`, created: Math.floor(Date.now() / 1000), model: name };
  const top = call.topLogprobs > 0 ? new TopTokens(request, call.topLogprobs) : null;
  const answering: Answering = { head, request, n: call.body.n ?? 1, top };
  if (call.body.stream) return stream(call, answering, signal, served, done);
  const start = performance.now();
  const outcome = await run(answering, served, signal);
  done();
  const body = JSON.stringify(call.whole(answering, outcome, performance.now() - start));
  return { body, headers: { 'content-type': 'application/json' } };
}

async function run(
  { request, n, top }: Answering,
  served: Served,
  signal: AbortSignal,
  listener: { onAdmit?: (rows: readonly PreparedRow[]) => void; onEvent?: StreamWriter['event'] } = {},
): Promise<Outcome> {
  const results = await runChoices(request, n, signal, { ...listener, ...(top && { onStep: top.see }) });
  await top?.compute(signal);
  const usage = usageOf(n, results);
  served.usage = usage;
  served.finish = results.map(finishOf);
  served.passes = results.map(({ nfe }) => nfe);
  return { results, usage };
}

/** Answers as a stream: what fails before a row is admitted is answered as an error with its status. */
function stream(
  call: Call,
  answering: Answering,
  signal: AbortSignal,
  served: Served,
  done: () => void,
): Promise<Answered> {
  const gone = new AbortController();
  const leave = () => gone.abort(new Error('the client has left'));
  signal.addEventListener('abort', leave, { once: true });
  const events = new EventStream(leave);
  const writer = call.writer(answering, (data, event) => events.send(data, event));
  return new Promise((resolve, reject) => {
    let isOpen = false;
    const onAdmit = (rows: readonly PreparedRow[]) => {
      if (isOpen) return;
      isOpen = true;
      const headers = {
        'content-type': 'text/event-stream; charset=utf-8',
        'cache-control': 'no-cache',
        'x-accel-buffering': 'no',
      };
      writer.open(rows);
      resolve({ body: events.body, headers });
    };
    run(answering, served, gone.signal, { onAdmit, onEvent: writer.event })
      .then(writer.finish, (error) => {
        // A server that closes tells its clients; one that has left hears nothing.
        const reason = signal.aborted ? signal.reason : error;
        const failure = apiErrorOf(reason);
        served.error = gone.signal.aborted && failure.code === 'internal_error' ? undefined : failure;
        if (!isOpen) return reject(reason);
        if (served.error) writer.fail(served.error);
      })
      .finally(() => {
        signal.removeEventListener('abort', leave);
        events.close();
        if (isOpen) done();
      });
  });
}
