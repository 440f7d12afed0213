// Tasks and data sets, as training and evaluation see them.
import type { ChatMessage } from '../types';

/** A prompt: plain text, or chat messages for the checkpoint's chat template. */
export type ExamplePrompt = string | readonly ChatMessage[];

/** One prompt with a right answer. */
export interface Example<P extends ExamplePrompt = ExamplePrompt, A extends string | null = string> {
  /** What the model sees. */
  prompt: P;
  /** One right answer; a task with free choices draws one of them. Only a {@link Dataset} may have none: null. */
  answer: A;
  /** Operation or sentence family, for tables. */
  category: string;
  /** What the verifier needs. */
  meta: unknown;
}

/** Shares of categories in a sample, relative to each other; a category without one has none. */
export type Shares = Readonly<Record<string, number>>;

/** A verifiable task: seeded and endless, or a finite set of examples. */
export interface TaskDataset<P extends ExamplePrompt = ExamplePrompt> {
  /** Short name, such as "st1". */
  name: string;
  /** Length of completions in tokens; answers are padded to it with end-of-sequence tokens. */
  genLength: number;
  /** Block length that the task is decoded with; divides `genLength`. */
  blockLength: number;
  /**
   * Equal arguments give equal examples. Endless tasks: the splits are disjoint by construction. Finite ones: the first
   * `count` examples of a split in the file's order, whatever the seed; of "train", `count` drawn by the seed.
   * @param shares of the task's `categories`. Default: its own
   */
  sample(split: 'train' | 'validation' | 'test', count: number, seed: number, shares?: Shares): Example<P>[];
  /** Further splits that `sample` knows, for evaluation. */
  moreSplits?: readonly string[] | undefined;
  /** Categories that `sample` takes shares of; absent where it takes none. */
  categories?: readonly string[] | undefined;
  /** Whether a completion's text is a right answer. */
  verify(example: Example<P>, completion: string): boolean | Promise<boolean>;
  /** Words for a word-level tokenizer.json; none for data sets of natural text. */
  vocabulary: readonly string[];
  /** All examples of each loaded split; absent for endless tasks. */
  finite?: Readonly<Partial<Record<'train' | 'validation' | 'test', readonly Example<P>[]>>> | undefined;
  /** Source of the prompts and answers, for reports. */
  source?: Readonly<Record<string, unknown>> | undefined;
}

/** Any data set: a {@link TaskDataset}, or a user's own examples, which may lack answers and lengths. */
export interface Dataset<P extends ExamplePrompt = ExamplePrompt>
  extends Omit<TaskDataset<P>, 'genLength' | 'blockLength' | 'sample' | 'verify' | 'finite'> {
  /** As of a {@link TaskDataset}; null: what uses it decides. */
  genLength: number | null;
  /** As of a {@link TaskDataset}; null: what uses it decides. */
  blockLength: number | null;
  /** As of a {@link TaskDataset}. */
  sample(
    split: 'train' | 'validation' | 'test',
    count: number,
    seed: number,
    shares?: Shares,
  ): Example<P, string | null>[];
  /** As of a {@link TaskDataset}; without answers it holds for no completion. */
  verify(example: Example<P, string | null>, completion: string): boolean | Promise<boolean>;
  /** As of a {@link TaskDataset}. */
  finite?: Readonly<Partial<Record<'train' | 'validation' | 'test', readonly Example<P, string | null>[]>>>;
  /** `verify` compares with the answer, white space aside, because the data bring no verifier. Default false. */
  exactMatch?: boolean;
}
