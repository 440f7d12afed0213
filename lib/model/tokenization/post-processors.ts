// Post-processors: the special tokens that are put around a text.
import { z } from 'zod';
import { build, type Component, component } from './component';

/** Ids of a text with the special tokens around it. */
export type PostProcessor = (ids: number[]) => number[];

const idSchema = z.int().nonnegative();
const tokenSchema = z.tuple([z.string(), idSchema]);
const pieceSchema = z.union([
  z.strictObject({ SpecialToken: z.strictObject({ id: z.string(), type_id: z.int() }) }),
  z.strictObject({ Sequence: z.strictObject({ id: z.enum(['A', 'B']), type_id: z.int() }) }),
]);
const specialSchema = z.strictObject({ id: z.string(), ids: z.array(idSchema), tokens: z.array(z.string()) });

/** In the processors of BERT and RoBERTa. */
const around =
  ({ cls, sep }: { cls: [string, number]; sep: [string, number] }): PostProcessor =>
  (ids) => [cls[1], ...ids, sep[1]];

const POST_PROCESSORS: Record<string, Component<PostProcessor>> = {
  TemplateProcessing: component(
    { single: z.array(pieceSchema), pair: z.array(pieceSchema), special_tokens: z.record(z.string(), specialSchema) },
    ({ single, special_tokens }, path) => {
      const pieces = single.map((piece) => {
        if ('Sequence' in piece) {
          if (piece.Sequence.id === 'B') throw new Error(`${path}.single: a second text is not supported`);
          return null;
        }
        const { id } = piece.SpecialToken;
        if (!Object.hasOwn(special_tokens, id))
          throw new Error(`${path}.special_tokens: ${JSON.stringify(id)} is missing`);
        return special_tokens[id].ids;
      });
      return (ids) => pieces.flatMap((piece) => piece ?? ids);
    },
  ),
  BertProcessing: component({ sep: tokenSchema, cls: tokenSchema }, around),
  RobertaProcessing: component(
    { sep: tokenSchema, cls: tokenSchema, trim_offsets: z.boolean(), add_prefix_space: z.boolean() },
    around,
  ),
  // Changes where tokens are said to stand in the text, not which they are.
  ByteLevel: component(
    { add_prefix_space: z.boolean(), trim_offsets: z.boolean(), use_regex: z.boolean().default(true) },
    () => (ids) => ids,
  ),
  Sequence: component({ processors: z.array(z.unknown()) }, ({ processors }, path) => {
    const steps = processors.map((step, i) => buildPostProcessor(step, `${path}.processors[${i}]`));
    return (ids) => steps.reduce((result, step) => step(result), ids);
  }),
};

/** The post-processor of a tokenizer.json. @throws Error naming what is not supported */
export const buildPostProcessor = (json: unknown, path = 'post_processor'): PostProcessor =>
  build(POST_PROCESSORS, json, path);
