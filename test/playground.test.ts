// The playground in a browser: what it shows is what the API says.
import type { Browser, Page } from 'playwright-core';
import { loadModel, type MaskedDiffusionModel } from '../lib';
import { type Listening, listen } from '../lib/server';
import { hasBrowser, inBrowser, launch, testInBrowser } from './browser';
import { eventsIn } from './servers';

const PROMPT = 'tom has 7 apples . he buys 5 . how many now ? story';

let model: MaskedDiffusionModel;
/** One that was trained to decide, too. */
let world: MaskedDiffusionModel;
let listening: Listening;
let browser: Browser | null = null;
beforeAll(async () => {
  model = await loadModel('word-problems', { threads: 1 });
  world = await loadModel('world', { threads: 1 });
  listening = await listen({ models: { small: model, world }, port: 0 });
  if (hasBrowser) browser = await launch();
});
afterAll(async () => {
  await browser?.close();
  await listening.close();
  model.dispose();
  world.dispose();
});

/** A page with what it asked for and complained about. */
async function open(hash = '', width = 1280): Promise<{ page: Page; complaints: string[]; hosts: Set<string> }> {
  const page = await browser!.newPage({ viewport: { width, height: 900 } });
  // A busy machine is slow, and no reason to fail.
  page.setDefaultTimeout(300_000);
  const complaints: string[] = [];
  const hosts = new Set<string>();
  page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()));
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('request', (request) => hosts.add(new URL(request.url()).host));
  await page.goto(`${listening.url}/${hash}`);
  await page.locator('select[name=model] option').first().waitFor({ state: 'attached' });
  return { page, complaints, hosts };
}
const isDone = (page: Page) =>
  page
    .locator('#state')
    .filter({ hasText: /^(done|stopped)$/ })
    .waitFor({ timeout: 300_000 });

/** The page's document: types of browsers are not those of Node.js. */
// biome-ignore lint/suspicious/noExplicitAny: as said
type Root = any;

testInBrowser(inBrowser('a row fills in place, and its passes can be gone through'), async () => {
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
  // Every cell is filled once: by the pass that the API's own frames name, with their token.
  const stream = await fetch(`${listening.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ prompt: PROMPT, sampler: 'fixed:4', stream: true, stream_mode: 'denoise' }),
  });
  const frames = eventsIn(await stream.text()).flatMap((event) => event.dultra?.frame ?? []);
  const filled = new Map<number, string>();
  for (const { step, unmasked } of frames)
    for (const { position, token } of unmasked) {
      expect(filled.has(position)).toBe(false);
      filled.set(position, `(token ${token}), pass ${step},`);
    }
  const labels = await page
    .locator('.answer')
    .first()
    .locator('.cell')
    .evaluateAll((cells: Root[]) => cells.map((cell: Root) => cell.getAttribute('aria-label') as string));
  for (const [position, label] of labels.entries()) expect(label).toContain(filled.get(position) ?? ': masked');
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

testInBrowser(inBrowser('templates, links and errors'), async () => {
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

/** Texts whose contrast with what is behind them is too low, as WCAG AA has it, and elements with a doubtful role or id. */
const faultsOf = (page: Page): Promise<string[]> =>
  page.evaluate(() => {
    const { document, getComputedStyle } = globalThis as Root;
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    /** A colour of any notation over another. */
    const over = (colour: string, [r, g, b]: number[]): number[] => {
      canvas.fillStyle = `rgb(${r} ${g} ${b})`;
      canvas.fillRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const luminance = (colour: number[]) => {
      const [r, g, b] = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element: Root): number[] =>
      element ? over(getComputedStyle(element).backgroundColor, behind(element.parentElement)) : [255, 255, 255];
    const faults: string[] = [];
    for (const element of document.querySelectorAll('body *')) {
      const own = [...element.childNodes].some((node: Root) => node.nodeType === 3 && node.textContent.trim());
      if (!own || !element.checkVisibility() || element.disabled) continue;
      const style = getComputedStyle(element);
      const back = behind(element);
      const shown = over(style.color, back).map((c, i) => back[i] + (c - back[i]) * Number(style.opacity));
      const [low, high] = [luminance(back), luminance(shown)].sort((a, b) => a - b);
      const ratio = (high + 0.05) / (low + 0.05);
      if (ratio < 4.5) faults.push(`${element.outerHTML.slice(0, 120)}: contrast ${ratio.toFixed(2)}`);
    }
    const ids = [...document.querySelectorAll('[id]')].map(({ id }: Root) => id);
    faults.push(...ids.filter((id: string, i: number) => ids.indexOf(id) !== i).map((id: string) => `two of id ${id}`));
    for (const element of document.querySelectorAll('[aria-describedby], [for]'))
      for (const id of (element.getAttribute('aria-describedby') ?? element.getAttribute('for')).split(' '))
        if (!document.getElementById(id)) faults.push(`${element.outerHTML.slice(0, 120)}: there is no ${id}`);
    for (const list of document.querySelectorAll('[role=list]'))
      if ([...list.children].some((child: Root) => child.getAttribute('role') !== 'listitem'))
        faults.push('a list of others');
    if (!document.documentElement.lang || !document.title) faults.push('no language or title');
    return faults;
  });

testInBrowser(inBrowser('a stop ends the row on the server, decisions sum to one, and all can be read'), async () => {
  const { page, complaints, hosts } = await open('#lane=fixed%7C');
  const { engine } = model.engineParts();
  await page.fill('textarea', PROMPT);
  // As many passes as the model has positions: it is stopped on the way.
  await page.evaluate(() => {
    const { document } = globalThis as Root;
    new (globalThis as Root).MutationObserver(() => {
      if (document.querySelector('.cell.decided')) document.getElementById('stop').click();
    }).observe(document.getElementById('results'), { childList: true, subtree: true, attributes: true });
  });
  await page.click('text=Generate');
  await isDone(page);
  expect(await page.textContent('#state')).toBe('stopped');
  for (let i = 0; i < 400 && engine.state.activeRows > 0; i++) await new Promise((resolve) => setTimeout(resolve, 5));
  expect(engine.state.activeRows).toBe(0);
  for (const scheme of ['light', 'dark'] as const) {
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: 'reduce' });
    expect(await faultsOf(page)).toEqual([]);
  }
  await page.selectOption('select[name=model]', 'world');
  await page.selectOption('select[name=kind]', 'decision');
  await page.fill('textarea[name=prompt]', 'The soup was awful and the waiter was dreadful.');
  const questions = [
    ['predicate', 'Will the customer buy again?', []],
    ['choice', 'Is this review positive, negative or neutral?', ['positive', 'negative', 'neutral']],
    ['score', 'How many stars?', ['one', 'two', 'three', 'four', 'five']],
  ] as const;
  for (const [kind, question, options] of questions) {
    await page.selectOption('select[name=answers]', kind);
    await page.fill('input[name=question]', question);
    if (options.length > 0) await page.fill('textarea[name=options]', options.join('\n'));
    await page.click('text=Generate');
    await page.locator('.answer h2', { hasText: question }).waitFor({ timeout: 300_000 });
    const items = page.locator('.options li');
    const shares = await items.evaluateAll((all: Root[]) => all.map((item: Root) => Number(item.dataset.probability)));
    expect(shares).toHaveLength(Math.max(2, options.length));
    expect(shares.reduce((sum: number, share: number) => sum + share, 0)).toBeCloseTo(1, 6);
    await isDone(page);
  }
  for (const scheme of ['light', 'dark'] as const) {
    await page.emulateMedia({ colorScheme: scheme });
    expect(await faultsOf(page)).toEqual([]);
  }
  expect(complaints).toEqual([]);
  expect([...hosts]).toEqual([new URL(listening.url).host]);
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
