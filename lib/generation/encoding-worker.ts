// The thread that encodes long texts; encoding.ts starts it.
import { parentPort, workerData } from 'node:worker_threads';
import { isGgufPath, openGguf, tokenizerSource } from '../model/gguf';
import { loadTokenizer } from '../model/load-tokenizer';
import { failureOf, idsOfText, type Text, type ThreadReply, type ThreadSetup } from './encoding';
import type { TemplateVocabulary } from './template';

/** The tokenizer's files, read again: a loaded one cannot be sent. */
async function open({ source, config }: ThreadSetup): Promise<TemplateVocabulary> {
  const { maskTokenId, embeddingSize } = config;
  const found = isGgufPath(source) ? tokenizerSource(await openGguf(source)) : source;
  const from = found === null || typeof found === 'string' ? found : { file: source, ...found };
  return { tokenizer: await loadTokenizer(from, maskTokenId, embeddingSize), config, source };
}

const opened = open(workerData as ThreadSetup);
// Whoever asks is told.
opened.catch(() => {});

parentPort!.on('message', async (texts: Text[]) => {
  let reply: ThreadReply;
  try {
    const vocabulary = await opened;
    reply = { ids: texts.map((text) => idsOfText(vocabulary, text)) };
  } catch (error) {
    reply = { failure: failureOf(error) };
  }
  parentPort!.postMessage(reply, 'ids' in reply ? reply.ids.map(({ buffer }) => buffer as ArrayBuffer) : []);
});
