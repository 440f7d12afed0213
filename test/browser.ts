// The browser of the system, for tests that need one.
import { existsSync } from 'node:fs';
import { type Browser, chromium } from 'playwright-core';

const BROWSERS = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
const executablePath = BROWSERS.find((path) => existsSync(path));

/** Whether there is one. */
export const hasBrowser = executablePath !== undefined;

/** `test`, or `test.skip` where there is no browser; and a name that says so. */
export const testInBrowser = executablePath ? test : test.skip;
export const inBrowser = (name: string) => (executablePath ? name : `${name} (skipped: there is no Chromium)`);

/** Starts it. */
export const launch = (): Promise<Browser> =>
  chromium.launch({ executablePath: executablePath!, args: ['--no-sandbox'], timeout: 0 });
