// Servers in processes of their own, and what any server streams.
import { spawn } from 'node:child_process';
import { once } from 'node:events';

/** The events of a stream: values of JSON, and "[DONE]". */
// biome-ignore lint/suspicious/noExplicitAny: answers are compared with what they should be
export function eventsIn(stream: string): any[] {
  const data = stream.split('\n\n').flatMap((event) => /^data: (.*)$/m.exec(event)?.[1] ?? []);
  return data.map((text) => (text === '[DONE]' ? text : JSON.parse(text)));
}

/** A program that serves. */
export interface Program {
  url: string;
  /** Sends SIGTERM. @returns the exit code, or the signal that ended it */
  stop(): Promise<number | string>;
}

/** Starts a program of Node.js, which says where it listens. */
export async function startProgram(file: string, args: string[], cwd?: string): Promise<Program> {
  const child = spawn(process.execPath, [file, ...args], { cwd });
  const url = await new Promise<string>((resolve, reject) => {
    let said = '';
    const hear = (data: Buffer) => {
      said += String(data);
      const found = /^(?:listening on )?(http:\/\/127\.0\.0\.1:\d+)$/m.exec(said);
      if (found) resolve(found[1]);
    };
    child.stdout.on('data', hear);
    child.stderr.on('data', hear);
    child.on('exit', (code) => reject(new Error(`it ended with ${code}: ${said}`)));
  });
  return {
    url,
    async stop() {
      const ended = once(child, 'exit');
      child.kill();
      const [code, signal] = await ended;
      return code ?? signal;
    },
  };
}
