// Chats: what of the messages the model sees, what the session keeps, and the command that talks to one.
import { type ChatEvent, type ChatMessage, ChatSession, loadModel, type MaskedDiffusionModel } from '../lib';
import { modelFolder, withTokenizer } from './helpers';

/** Ids of the test tokenizer, which has one for each printable character. */
const codes = (text: string) => Array.from(text, (character) => character.charCodeAt(0) - 32);

describe('ChatSession', () => {
  let model: MaskedDiffusionModel;
  beforeAll(async () => {
    model = await loadModel(withTokenizer(96));
  });
  afterAll(() => model.dispose());
  const options = { maxTokens: 8 };

  test('an answer is what generate gives for the messages, and both join them', async () => {
    const chat = model.chat({ system: 'be brief' });
    const first = await chat.send('hi', options);
    const prompt: ChatMessage[] = [
      { role: 'system', content: 'be brief' },
      { role: 'user', content: 'hi' },
    ];
    const expected = await model.generate(prompt, options);
    expect(first).toEqual({ text: expected.text, dropped: 0, result: expected });
    const second = await chat.send('and?', options);
    const messages = [...prompt, { role: 'assistant', content: first.text }, { role: 'user', content: 'and?' }];
    expect(second.result).toEqual(await model.generate(messages, options));
    expect(chat.messages).toEqual([...messages, { role: 'assistant', content: second.text }]);
  });

  test('a stream ends with the same answer', async () => {
    const chat = model.chat();
    const events: ChatEvent[] = [];
    for await (const event of chat.sendStream('hi', options)) events.push(event);
    const other = model.chat();
    expect(events.at(-1)!.answer).toEqual(await other.send('hi', options));
    expect(events.map(({ delta }) => delta).join('')).toBe(events.at(-1)!.answer!.text);
    expect(events.map(({ step }) => step)).toEqual(events.map((_, i) => i + 1));
    expect(chat.messages).toEqual(other.messages);
  });

  test('the oldest turns are dropped, as whole turns, as few as will do, and the system message never', async () => {
    const turn = (i: number): ChatMessage[] => [
      { role: 'user', content: `q${i}` },
      { role: 'assistant', content: `a${i}` },
    ];
    const messages: ChatMessage[] = [{ role: 'system', content: 's' }, ...[1, 2, 3, 4, 5].flatMap(turn)];
    const chat = model.chat({ messages });
    // "system:s;" 9, a turn "user:qN;assistant:aN;" 8 + 13, "user:new;" 9: three turns and 8 tokens make 89, four 110.
    const { result, dropped } = await chat.send('new', options);
    expect(dropped).toBe(4);
    const seen = `system:s;${[3, 4, 5].map((i) => `user:q${i};assistant:a${i};`).join('')}user:new;`;
    expect(Array.from(result.promptIds)).toEqual(codes(seen));
    expect(chat.messages.slice(0, 11)).toEqual(messages);
    // All that is left is the message itself, to the last position.
    const longest = 'x'.repeat(96 - 8 - 9 - 'user:;'.length);
    const again = model.chat({ messages });
    expect((await again.send(longest, options)).dropped).toBe(10);
    await expect(again.send(`${longest}x`, options)).rejects.toThrow(
      /^text: 89 tokens, without earlier turns, and maxTokens 8 make 97, more than the model's maximum of 96$/,
    );
    expect(again.messages).toHaveLength(13);
  });

  test('special tokens in messages are text, unless they are wanted', async () => {
    const { result } = await model.chat().send('a<mask>', options);
    expect(Array.from(result.promptIds)).toEqual(codes('user:a<mask>;'));
    const special = await model.chat().send('a<mask>', { ...options, splitSpecialTokens: false });
    expect(special.result.promptIds).toHaveLength('user:a;'.length + 1);
  });

  test('a message that is stopped leaves the chat as it was', async () => {
    const chat = model.chat();
    await chat.send('hi', options);
    const before = chat.toJSON();
    const stop = new AbortController();
    stop.abort(new Error('enough'));
    await expect(chat.send('more', { ...options, signal: stop.signal })).rejects.toThrow('enough');
    for await (const _event of chat.sendStream('more', { maxTokens: 32, sampler: { type: 'fixed', steps: 32 } })) break;
    await expect(chat.send('more', { maxTokens: 0 })).rejects.toThrow(/^maxTokens: expected an integer at least 1/);
    expect(chat.toJSON()).toEqual(before);
    await chat.send('more', options);
    expect(chat.messages).toHaveLength(4);
  });

  test('one message at a time', async () => {
    const chat = model.chat();
    const first = chat.send('hi', options);
    await expect(chat.send('you', options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(() => chat.reset()).toThrow('this chat answers a message');
    await first;
    expect(chat.messages).toHaveLength(2);
  });

  test('JSON goes on with the chat; reset keeps the system message', async () => {
    const chat = new ChatSession(model, { system: 'be brief' });
    await chat.send('hi', options);
    const copy = model.chat(JSON.parse(JSON.stringify(chat)));
    expect(copy.messages).toEqual(chat.messages);
    expect((await copy.send('on', options)).result).toEqual((await chat.send('on', options)).result);
    chat.messages.push({ role: 'user', content: 'not the chat itself' });
    expect(chat.messages).toHaveLength(5);
    chat.reset();
    expect(chat.toJSON()).toEqual({ messages: [{ role: 'system', content: 'be brief' }] });
  });

  const user = { role: 'user', content: 'hi' };
  const assistant = { role: 'assistant', content: 'ho' };
  const system = { role: 'system', content: 's' };
  test.each<[string, unknown, RegExp]>([
    ['no list', { messages: 'hi' }, /^messages: expected an array, got "hi"/],
    ['no message', { messages: [user, 5] }, /^messages\[1\]: expected \{ role, content \}, both strings, got 5/],
    ['an open turn', { messages: [user] }, /^messages: expected whole turns, .* got "user"/],
    ['an answer first', { messages: [assistant] }, /^messages: expected whole turns/],
    ['a system message inside', { messages: [user, system, assistant] }, /^messages: expected whole turns/],
    ['two system messages', { system: 'a', messages: [system] }, /^system: not allowed with messages/],
    ['a system message of nothing', { system: ' ' }, /^system: expected a text that says something/],
    ['another option', { history: [] }, /^options: unknown key "history"/],
  ])('%s is refused', (_what, given, message) => {
    expect(() => model.chat(given as object)).toThrow(message);
  });

  test('a message of nothing, and a model without a chat template, are refused', async () => {
    await expect(model.chat().send(' \n')).rejects.toThrow('text: expected a text that says something');
    await using other = await loadModel(modelFolder('base'));
    expect(() => other.chat()).toThrow(expect.objectContaining({ code: 'NO_TOKENIZER' }));
  });
});
