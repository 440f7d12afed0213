// The page to try models on: files of this folder, served as they are.
import { readFileSync } from 'node:fs';
import { packageFile, pageStyle } from '../package';

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
  const place = ['lib', 'server', name];
  const text =
    texts.get(name) ?? (name.endsWith('.css') ? pageStyle(...place) : readFileSync(packageFile(...place), 'utf8'));
  texts.set(name, text);
  return text;
}
