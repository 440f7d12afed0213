// What a task or a dataset is to training and evaluation.

/** One prompt with a right answer. */
export interface Example {
  /** Text that the model sees. */
  prompt: string;
  /** One right answer; a task with free choices draws one of them. */
  answer: string;
  /** Operation or sentence family, for tables. */
  category: string;
  /** What the verifier needs. */
  meta: unknown;
}

/** A seeded, verifiable task. */
export interface TaskDataset {
  /** Short name, such as "st1". */
  name: string;
  /** Tokens that a completion is given; answers are padded to it with end-of-sequence tokens. */
  genLength: number;
  /** Block length that the task is decoded with; divides `genLength`. */
  blockLength: number;
  /** Endless and seeded: equal arguments give equal examples. The splits are disjoint by construction. */
  sample(split: 'train' | 'validation' | 'test', count: number, seed: number): Example[];
  /** Whether a completion's text is a right answer. */
  verify(example: Example, completion: string): boolean;
  /** Words for a word-level tokenizer.json. */
  vocabulary: readonly string[];
}
