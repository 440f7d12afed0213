/** Every code that a {@link DUltraError} can carry. */
export const ERROR_CODES = [
  'INVALID_ARGUMENT',
  'OUT_OF_MEMORY',
  'DEVICE_UNAVAILABLE',
  'BAD_CHECKPOINT',
  'BAD_DATASET',
  'NO_PLANNER',
  'NO_TOKENIZER',
  'NON_FINITE',
  'NO_PROGRESS',
  'OVERLOADED',
  'DEADLINE_EXCEEDED',
  'PACKAGE_NOT_FOUND',
  'SANDBOX',
  'DISPOSED',
  'NATIVE_NOT_FOUND',
  'DOWNLOAD_FAILED',
  'WRITE_FAILED',
  'DISTRIBUTED',
  'INTERNAL',
] as const;

/** One of {@link ERROR_CODES}. */
export type ErrorCode = (typeof ERROR_CODES)[number];

/**
 * A failure that is not a wrong argument: a broken checkpoint, a missing device, memory that ran out. Wrong arguments
 * are `TypeError` or `RangeError` (see {@link OptionError}); an abort rejects with the signal's own reason.
 */
export class DUltraError extends Error {
  /** What kind of failure it was; stable across releases, unlike the message. */
  readonly code: ErrorCode;
  /** The option that it is about, if there is one, such as "device". */
  declare readonly option?: string;

  /** `options.cause`: the underlying error. */
  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'DUltraError';
    this.code = code;
  }
}

/** True for a {@link DUltraError}, with `code` if given; also across realms and package copies. */
export function isDUltraError(error: unknown, code?: ErrorCode): error is DUltraError {
  return (
    error instanceof Error &&
    error.name === 'DUltraError' &&
    (code === undefined || (error as DUltraError).code === code)
  );
}

/** A wrong argument: its message is "option: what was expected, what came", and `option` names it by itself. */
export type OptionError = (TypeError | RangeError) & {
  /** As in the message: "maxTokens", "sampler.threshold", "prompts[3]". */
  readonly option: string;
};

/** Makes an {@link OptionError}. */
export function optionError(
  Type: typeof TypeError | typeof RangeError,
  option: string,
  text: string,
  options?: ErrorOptions,
): OptionError {
  return Object.assign(new Type(`${option}: ${text}`, options), { option });
}

/**
 * Runs checks of a part of the options. Their errors then name it: "weight" of "rewards.fast.options" as
 * "rewards.fast.options.weight".
 * @param self what the checks call the part as a whole
 */
export function within<T>(name: string, self: string, run: () => T): T {
  try {
    return run();
  } catch (error) {
    throw isOptionError(error) ? optionWithin(name, self, error) : error;
  }
}

/** An error of {@link within}. */
export function optionWithin(name: string, self: string, error: OptionError): OptionError {
  const { option, message } = error;
  const isSelf = option === self || option.startsWith(`${self}.`) || option.startsWith(`${self}[`);
  const full = isSelf ? `${name}${option.slice(self.length)}` : `${name}.${option}`;
  const Type = error.name === 'RangeError' ? RangeError : TypeError;
  return optionError(Type, full, message.slice(option.length + 2), { cause: error });
}

/** True for an {@link OptionError}; also across realms and package copies. */
export function isOptionError(error: unknown): error is OptionError {
  return (
    error instanceof Error &&
    ['TypeError', 'RangeError'].includes(error.name) &&
    typeof (error as { option?: unknown }).option === 'string'
  );
}
