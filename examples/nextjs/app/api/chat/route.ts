// POST { prompt }: the answer as a stream of text.
import { streamText } from 'ai';
import { NAME, provider } from '../../../lib/models.ts';

export async function POST(request: Request): Promise<Response> {
  const { prompt } = await request.json();
  if (typeof prompt !== 'string' || prompt.trim() === '')
    return Response.json({ error: 'expected { "prompt": "…" }' }, { status: 400 });
  const dultra = await provider();
  return streamText({ model: dultra(NAME), prompt, abortSignal: request.signal }).toTextStreamResponse();
}
