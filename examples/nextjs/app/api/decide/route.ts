// POST { text }: what a review says, with probabilities, from one forward pass.
import { experimental_decide as decide } from 'ai';
import { NAME, provider } from '../../../lib/models.ts';

const QUESTIONS = {
  mood: {
    type: 'choice',
    instructions: 'Is this review positive, negative or neutral?',
    criteria: { positive: null, negative: null, neutral: null },
  },
  stars: { type: 'score', instructions: 'How many stars?', criteria: ['one', 'two', 'three', 'four', 'five'] },
  again: { type: 'boolean', instructions: 'Will the customer buy again?' },
} as const;

export async function POST(request: Request): Promise<Response> {
  const { text } = await request.json();
  if (typeof text !== 'string' || text.trim() === '')
    return Response.json({ error: 'expected { "text": "…" }' }, { status: 400 });
  const dultra = await provider();
  const model = dultra.decisionModel(NAME);
  const { answers } = await decide({ model, state: text, questions: QUESTIONS, abortSignal: request.signal });
  return Response.json(answers);
}
