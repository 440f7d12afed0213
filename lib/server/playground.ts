// The page to try models on: files of this folder, served as they are.
import { readFileSync } from 'node:fs';
import { packageFile } from '../package';

interface PageFile {
  name: string;
  type: string;
}

/** Paths of the page. */
export const PLAYGROUND: Readonly<Record<string, PageFile>> = {
  '/': { name: 'playground-page.html', type: 'text/html; charset=utf-8' },
  '/playground-page.css': { name: 'playground-page.css', type: 'text/css; charset=utf-8' },
  '/playground-page.js': { name: 'playground-page.js', type: 'text/javascript; charset=utf-8' },
};

const texts = new Map<string, string>();

/** Text of one of them, read once. */
export function playgroundFile(name: string): string {
  const text = texts.get(name) ?? readFileSync(packageFile('lib', 'server', name), 'utf8');
  texts.set(name, text);
  return text;
}
