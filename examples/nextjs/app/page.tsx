'use client';
import { useState } from 'react';

const post = (path: string, body: object) =>
  fetch(path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });

export default function Page() {
  const [prompt, setPrompt] = useState('Extract the order as JSON: Hi, this is Anna. I need 3 red mugs sent to Paris.');
  const [answer, setAnswer] = useState('');
  const [review, setReview] = useState('The soup was awful and the waiter was dreadful.');
  const [decided, setDecided] = useState('');

  const ask = async () => {
    setAnswer('');
    const { body } = await post('/api/chat', { prompt });
    if (!body) return;
    for (const reader = body.pipeThrough(new TextDecoderStream()).getReader(); ; ) {
      const { value, done } = await reader.read();
      if (done) return;
      setAnswer((text) => text + value);
    }
  };
  const decide = async () => {
    const response = await post('/api/decide', { text: review });
    setDecided(JSON.stringify(await response.json(), null, 2));
  };

  return (
    <main>
      <h1>A model in this server</h1>
      <label htmlFor="prompt">Prompt</label>
      <textarea
        id="prompt"
        rows={3}
        style={{ width: '100%' }}
        value={prompt}
        onChange={(e) => setPrompt(e.target.value)}
      />
      <button type="button" onClick={ask}>
        Answer
      </button>
      <pre aria-live="polite">{answer}</pre>
      <label htmlFor="review">Review</label>
      <textarea
        id="review"
        rows={3}
        style={{ width: '100%' }}
        value={review}
        onChange={(e) => setReview(e.target.value)}
      />
      <button type="button" onClick={decide}>
        Decide
      </button>
      <pre aria-live="polite">{decided}</pre>
    </main>
  );
}
