// The playground in a browser: what it shows is what the API says.
import { existsSync } from 'node:fs';
import { type Browser, chromium, type Page } from 'playwright-core';
import { loadModel, type MaskedDiffusionModel } from '../lib';
import { type Listening, listen } from '../lib/server';

const BROWSERS = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
const executablePath = BROWSERS.find((path) => existsSync(path));
const testInBrowser = executablePath ? test : test.skip;
const named = (name: string) => (executablePath ? name : `${name} (skipped: there is no Chromium)`);
const PROMPT = 'tom has 7 apples . he buys 5 . how many now ? story';

let model: MaskedDiffusionModel;
let listening: Listening;
let browser: Browser | null = null;
beforeAll(async () => {
  model = await loadModel('word-problems', { threads: 1 });
  listening = await listen({ models: { small: model }, port: 0 });
  if (executablePath) browser = await chromium.launch({ executablePath, args: ['--no-sandbox'], timeout: 0 });
});
afterAll(async () => {
  await browser?.close();
  await listening.close();
  model.dispose();
});

/** A page with what it asked for and complained about. */
async function open(hash = '', width = 1280): Promise<{ page: Page; complaints: string[]; hosts: Set<string> }> {
  const page = await browser!.newPage({ viewport: { width, height: 900 } });
  // A busy machine is slow, and no reason to fail.
  page.setDefaultTimeout(0);
  const complaints: string[] = [];
  const hosts = new Set<string>();
  page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()));
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('request', (request) => hosts.add(new URL(request.url()).host));
  await page.goto(`${listening.url}/${hash}`);
  await page.locator('select[name=model] option').waitFor({ state: 'attached' });
  return { page, complaints, hosts };
}
const isDone = (page: Page) =>
  page
    .locator('#state')
    .filter({ hasText: /^(done|stopped)$/ })
    .waitFor();

/** The page's document: types of browsers are not those of Node.js. */
// biome-ignore lint/suspicious/noExplicitAny: as said
type Root = any;

testInBrowser(named('a row fills in place, and its passes can be gone through'), async () => {
  const { page, complaints, hosts } = await open('#lane=fixed:4%7C&lane=planner%7C');
  await page.fill('textarea', PROMPT);
  await page.click('text=Generate');
  await isDone(page);
  for (const [at, sampler] of ['fixed:4', 'planner'].entries()) {
    const { text, ids, nfe } = await model.generate(PROMPT, { sampler, splitSpecialTokens: true });
    const answer = page.locator('.answer').nth(at);
    expect(await answer.locator('.cell').count()).toBe(ids.length);
    expect(await answer.locator('.text').textContent()).toBe(text);
    expect(await answer.locator('.figures').textContent()).toContain(`${nfe} passes`);
  }
  const first = page.locator('.answer').first();
  const masks = () => first.locator('.cell.mask').count();
  const left = await masks();
  await page.locator('#pass').fill('0');
  expect(await masks()).toBe(await first.locator('.cell').count());
  await page.click('#forth');
  const afterOne = await masks();
  expect(await first.locator('.cell.now').count()).toBe((await first.locator('.cell').count()) - afterOne);
  await page.locator('#pass').fill('99');
  expect(await masks()).toBe(left);
  await first.locator('.cell').first().focus();
  await page.keyboard.press('ArrowRight');
  expect(await page.locator('#cell').textContent()).toMatch(/^position 2: .*(probability \d+\.\d %|masked)$/);
  await first.locator('.cell').first().hover();
  expect(await page.locator('#cell').textContent()).toMatch(/^position 1: .*pass \d+, probability \d+\.\d %$/);
  expect(complaints).toEqual([]);
  expect([...hosts]).toEqual([new URL(listening.url).host]);
  await page.close();
});

testInBrowser(named('templates, links and errors'), async () => {
  const { page, complaints } = await open(
    '#kind=template&prompt=tom+has+%7B%7B2%7D%7D+apples&seed=7&lane=fixed%7C',
    390,
  );
  expect(await page.inputValue('textarea')).toBe('tom has {{2}} apples');
  await page.click('text=Generate');
  await isDone(page);
  expect(await page.locator('.cell.given').count()).toBe(3);
  expect(await page.locator('.cell.decided').count()).toBe(2);
  await page.click('text=Copy link');
  const link = new URLSearchParams(new URL(page.url()).hash.slice(1));
  expect([link.get('kind'), link.get('seed'), link.getAll('lane')]).toEqual(['template', '7', ['fixed|']]);
  // Nothing is wider than a phone.
  expect(await page.evaluate(() => (globalThis as Root).document.documentElement.scrollWidth)).toBeLessThanOrEqual(390);
  expect(complaints).toEqual([]);
  await page.fill('.sampler', 'nonsense');
  await page.click('text=Generate');
  await page.locator('#state.error').waitFor();
  expect(await page.textContent('#state')).toContain('sampler: expected');
  // Everything that can be used has a name.
  const unnamed = await page.evaluate(() =>
    [...(globalThis as Root).document.querySelectorAll('input, select, textarea, button')]
      .filter((element: Root) => !(element.labels?.length || element.textContent.trim() || element.ariaLabel))
      .map((element: Root) => element.outerHTML),
  );
  expect(unnamed).toEqual([]);
  await page.close();
});

test('the page may load nothing of others, and is shown without a key', async () => {
  const guarded = await listen({ models: { small: model }, port: 0, apiKeys: ['key'] });
  const page = await fetch(guarded.url);
  expect([page.status, page.headers.get('content-security-policy')]).toEqual([
    200,
    expect.stringContaining("default-src 'none'"),
  ]);
  expect(await page.text()).not.toMatch(/(src|href)="https?:/);
  for (const file of ['playground-page.js', 'playground-page.css'])
    expect((await fetch(`${guarded.url}/${file}`)).status).toBe(200);
  expect((await fetch(`${guarded.url}/v1/models`)).status).toBe(401);
  await guarded.close();
  const bare = await listen({ models: { small: model }, port: 0, playground: false });
  expect((await fetch(bare.url)).status).toBe(404);
  await bare.close();
});
