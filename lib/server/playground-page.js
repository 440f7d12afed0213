// The page to try models on: streams of the server's own API, kept as passes that can be gone through again.
const $ = (id) => document.getElementById(id);
const form = $('request');
const field = (name) => form.elements.namedItem(name);
const SETTINGS = [
  'model',
  'kind',
  'system',
  'prompt',
  'suffix',
  'max_tokens',
  'block_length',
  'temperature',
  'seed',
  'max_nfe',
  'question',
  'answers',
  'options',
];
const NUMBERS = ['max_tokens', 'block_length', 'temperature', 'max_nfe'];
const SAMPLERS = [
  'planner',
  'planner-round',
  'confidence:0.9',
  'entropy:0.1',
  'entropy-sum:0.2',
  'factor',
  'geometric',
  'fixed',
  'fixed:8',
  'dynamic',
  'd3llm',
];
const CACHES = ['none', 'prefix', 'dual', 'refresh', 'delayed', 'blocks'];
const MOST_LANES = 4;
const HINTS = {
  text: 'Continued as it stands, without a chat template.',
  chat: 'The message of a user, in the chat template of the model.',
  template: '[MASK] is a mask, and {{8}} are eight; they are filled in place.',
  decision: 'What the question is about: one pass says how probable each answer is.',
};

/** Answers of the last request: { sampler, cache, length, given, frames, usage, text, error, ms, row, figures }. */
let answers = [];
/** The pass that is shown; null: the last one that there is. */
let shown = null;
let stop = null;
let timer = null;

const add = (parent, tag, properties = {}) =>
  Object.assign(parent.appendChild(document.createElement(tag)), properties);
const passes = () => Math.max(0, ...answers.map(({ frames }) => frames.length));
const say = (text, isError = false) => {
  $('state').textContent = text;
  $('state').classList.toggle('error', isError);
};

function addLane(sampler = '', cache = '') {
  const lanes = $('lane-list').children.length;
  if (lanes >= MOST_LANES) return;
  const lane = add($('lane-list'), 'div', { className: 'lane' });
  const input = (label, list, value, placeholder) => {
    const element = add(add(lane, 'label', { textContent: `${label} ` }), 'input', {
      value,
      placeholder,
      autocomplete: 'off',
    });
    element.setAttribute('list', list);
    element.className = label.toLowerCase();
    return element;
  };
  input('Sampler', 'samplers', sampler, 'default');
  input('Cache', 'caches', cache, 'none');
  const remove = add(lane, 'button', { type: 'button', textContent: 'Remove' });
  remove.addEventListener('click', () => {
    lane.remove();
    lanesChanged();
    $('add').focus();
  });
  lanesChanged();
}

function lanesChanged() {
  const lanes = [...$('lane-list').children];
  for (const [i, lane] of lanes.entries()) {
    lane.querySelector('button').disabled = lanes.length === 1;
    lane.querySelector('button').setAttribute('aria-label', `Remove sampler ${i + 1}`);
  }
  $('add').disabled = lanes.length >= MOST_LANES;
}

const lanes = () =>
  [...$('lane-list').children].map((lane) => ({
    sampler: lane.querySelector('.sampler').value.trim(),
    cache: lane.querySelector('.cache').value.trim(),
  }));

/** The path and body of a lane's request. */
function requestOf({ sampler, cache }) {
  const kind = field('kind').value;
  const body = { model: field('model').value, stream: true, stream_options: { include_usage: true } };
  if (kind === 'chat') {
    const system = field('system').value;
    body.messages = [{ role: 'user', content: field('prompt').value }];
    if (system) body.messages.unshift({ role: 'system', content: system });
  } else {
    body.prompt = field('prompt').value;
    if (kind === 'text' && field('suffix').value) body.suffix = field('suffix').value;
  }
  for (const name of NUMBERS) {
    const { value } = field(name);
    if (value !== '' && !(kind === 'template' && name === 'max_tokens')) body[name] = Number(value);
  }
  // Text, since a seed has more digits than a number holds.
  if (field('seed').value) body.seed = field('seed').value;
  if (sampler) body.sampler = sampler;
  if (cache) body.cache = cache;
  body.dultra = { frames: true, ...(kind === 'template' && { template: true }) };
  return { path: kind === 'chat' ? 'v1/chat/completions' : 'v1/completions', body };
}

/** The body of a decision. */
function decisionOf() {
  const options = field('options')
    .value.split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '');
  const type = field('answers').value;
  const question = { type, instructions: field('question').value };
  if (type === 'choice') question.choices = options.map((value) => ({ value }));
  if (type === 'score') question.levels = options.map((label) => ({ label }));
  return { model: field('model').value, input: field('prompt').value, questions: [question] };
}

/** Each option of an answer with its probability. */
function optionsOf({ type, probability, probabilities }) {
  if (type === 'predicate')
    return [
      ['yes', probability],
      ['no', 1 - probability],
    ];
  return probabilities.map(({ value, label, probability: p }) => [label ?? String(value), p]);
}

const headers = () => {
  const key = field('key').value;
  return { 'content-type': 'application/json', ...(key && { authorization: `Bearer ${key}` }) };
};

/** The JSON values of a stream of events; examples/serve-chat.html reads them likewise. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ''; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts) if (part.startsWith('data: {')) yield JSON.parse(part.slice(6));
  }
}

async function run(answer, signal) {
  const { path, body } = requestOf(answer);
  const start = performance.now();
  try {
    const response = await fetch(path, { method: 'POST', headers: headers(), body: JSON.stringify(body), signal });
    if (!response.ok) {
      if (response.status === 401) $('key').hidden = false;
      throw new Error((await response.json()).error.message);
    }
    for await (const { dultra, choices, usage, error } of eventsOf(response)) {
      if (error) throw new Error(error.message);
      if (dultra?.canvas) Object.assign(answer, dultra.canvas);
      if (dultra?.frame) answer.frames.push({ ...dultra.frame, ms: performance.now() - start });
      answer.text += choices?.[0]?.text ?? choices?.[0]?.delta?.content ?? '';
      if (usage) answer.usage = usage;
      answer.ms = performance.now() - start;
      draw();
    }
  } catch (error) {
    answer.error = signal.aborted ? 'stopped' : error.message;
  }
  answer.isDone = true;
  draw();
}

/** Asks, and shows how probable each answer is. */
async function decide() {
  pause();
  stop?.abort();
  const own = new AbortController();
  stop = own;
  answers = [];
  shown = null;
  $('results').replaceChildren();
  $('stop').disabled = false;
  say('deciding');
  draw();
  const start = performance.now();
  try {
    const body = JSON.stringify(decisionOf());
    const response = await fetch('v1/decisions', { method: 'POST', headers: headers(), body, signal: own.signal });
    const decided = await response.json();
    if (!response.ok) {
      if (response.status === 401) $('key').hidden = false;
      throw new Error(decided.error.message);
    }
    const [answer] = decided.answers;
    const box = add($('results'), 'article', { className: 'answer' });
    add(box, 'h2', { textContent: field('question').value });
    const figures = [`${Math.round(performance.now() - start)} ms`];
    if (answer.score !== undefined) figures.unshift(`score ${answer.score.toFixed(2)}`);
    if (answer.confidence !== undefined) figures.unshift(`confidence ${answer.confidence.toFixed(2)}`);
    add(box, 'p', { className: 'figures', textContent: figures.join(' · ') });
    const list = add(box, 'ul', { className: 'options' });
    for (const [name, probability] of optionsOf(answer)) {
      const item = add(list, 'li');
      item.dataset.probability = probability;
      item.style.setProperty('--share', probability);
      add(item, 'span', { textContent: name });
      add(item, 'span', { className: 'share', textContent: `${(100 * probability).toFixed(1)} %` });
    }
    say('done');
  } catch (error) {
    if (stop === own) say(own.signal.aborted ? 'stopped' : error.message, !own.signal.aborted);
  }
  if (stop === own) $('stop').disabled = true;
}

/** The state of each position after so many passes. */
function cellsOf({ length, given, frames }, count) {
  const cells = Array.from({ length }, () => ({ kind: 'mask', text: '░' }));
  for (const { position, token, text } of given) cells[position] = { kind: 'given', token, text };
  for (const { step, unmasked } of frames.slice(0, count))
    for (const { position, token, text, probability } of unmasked)
      cells[position] = { kind: 'decided', token, text, probability, step };
  return cells;
}

function describe({ kind, text, token, probability, step }, position) {
  const where = `position ${position + 1}`;
  if (kind === 'mask') return `${where}: masked`;
  const what = text === '' ? `no text (token ${token})` : `“${text}” (token ${token})`;
  if (kind === 'given') return `${where}: ${what}, given`;
  return `${where}: ${what}, pass ${step}, probability ${(100 * probability).toFixed(1)} %`;
}

/** Text of a cell that can be seen, whatever it is. */
const visible = (text) => (text === '' ? '·' : text.replaceAll('\n', '↵\n'));

function drawRow(answer, count) {
  const cells = cellsOf(answer, count);
  const all = answer.frames.length;
  while (answer.row.children.length < cells.length) {
    const cell = add(answer.row, 'span');
    add(cell, 'span', { className: 'token' });
    cell.tabIndex = answer.row.children.length === 1 ? 0 : -1;
    cell.setAttribute('role', 'listitem');
  }
  for (const [position, state] of cells.entries()) {
    const cell = answer.row.children[position];
    const key = `${state.kind} ${state.step} ${state.text} ${all} ${state.step === count}`;
    if (cell.dataset.key === key) continue;
    cell.dataset.key = key;
    cell.className = `cell ${state.kind}${state.step === count && state.kind === 'decided' ? ' now' : ''}`;
    cell.firstChild.textContent = visible(state.text);
    cell.style.setProperty('--when', all > 1 ? (state.step - 1) / (all - 1) : 0);
    // Never so faint that it cannot be read.
    cell.style.setProperty('--sure', state.kind === 'decided' ? 0.72 + 0.28 * state.probability : 1);
    cell.setAttribute('aria-label', describe(state, position));
  }
}

function drawFigures({ usage, frames, ms, error, isDone, figures }, count) {
  const nfe = usage?.nfe ?? frames.length;
  const parts = [`${nfe} ${nfe === 1 ? 'pass' : 'passes'}`];
  if (usage) parts.push(`${usage.tokens_per_forward.toFixed(2)} tokens per pass`, `${usage.completion_tokens} tokens`);
  if (frames.length > 0) parts.push(`${(ms / 1000).toFixed(2)} s`, `${(ms / frames.length).toFixed(1)} ms per pass`);
  if (count < frames.length) parts.push(`shown: pass ${count}`);
  if (!isDone) parts.push('…');
  figures.textContent = error ? `${error}${frames.length > 0 ? `; ${parts.join(' · ')}` : ''}` : parts.join(' · ');
  figures.classList.toggle('error', Boolean(error) && error !== 'stopped');
}

function draw() {
  const all = passes();
  const at = Math.min(shown ?? all, all);
  for (const answer of answers) {
    const count = shown === null ? answer.frames.length : Math.min(at, answer.frames.length);
    drawRow(answer, count);
    drawFigures(answer, count);
    if (answer.isDone) answer.whole.textContent = answer.error ? '' : answer.text;
  }
  $('player').hidden = all === 0;
  $('pass').max = all;
  $('pass').value = at;
  $('pass-number').textContent = `${at} of ${all}`;
}

function show(pass) {
  shown = Math.max(0, Math.min(passes(), pass));
  draw();
}

function pause() {
  clearInterval(timer);
  timer = null;
  $('play').textContent = 'Play';
}

function play() {
  if (timer) {
    pause();
    return;
  }
  if ((shown ?? passes()) >= passes()) show(0);
  $('play').textContent = 'Pause';
  timer = setInterval(() => {
    show((shown ?? 0) + 1);
    if (shown >= passes()) pause();
  }, 150);
}

async function generate() {
  pause();
  stop?.abort();
  const own = new AbortController();
  stop = own;
  shown = null;
  $('results').replaceChildren();
  $('cell').textContent = '\u00a0';
  answers = lanes().map(({ sampler, cache }) => {
    const box = add($('results'), 'article', { className: 'answer' });
    add(box, 'h2', {
      textContent: [sampler || 'default sampler', cache && `cache ${cache}`].filter(Boolean).join(', '),
    });
    const figures = add(box, 'p', { className: 'figures' });
    const row = add(box, 'div', { className: 'row' });
    row.setAttribute('role', 'list');
    row.setAttribute('aria-label', 'Tokens');
    const whole = add(box, 'p', { className: 'text unseen' });
    whole.setAttribute('aria-live', 'polite');
    return {
      sampler,
      cache,
      length: 0,
      given: [],
      frames: [],
      usage: null,
      text: '',
      error: null,
      ms: 0,
      isDone: false,
      figures,
      row,
      whole,
    };
  });
  $('stop').disabled = false;
  say('generating');
  draw();
  await Promise.all(answers.map((answer) => run(answer, own.signal)));
  if (stop !== own) return;
  $('stop').disabled = true;
  const failed = answers.find(({ error }) => error && error !== 'stopped');
  say(failed ? failed.error : own.signal.aborted ? 'stopped' : 'done', Boolean(failed));
}

/** The settings as a link: in the part of the address that is not sent to the server, and without the key. */
function link() {
  const parameters = new URLSearchParams();
  for (const name of SETTINGS) if (field(name).value) parameters.set(name, field(name).value);
  for (const { sampler, cache } of lanes()) parameters.append('lane', `${sampler}|${cache}`);
  return `${location.href.split('#')[0]}#${parameters}`;
}

function readLink() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  for (const name of SETTINGS) if (parameters.has(name)) field(name).value = parameters.get(name);
  $('more').open = ['suffix', ...NUMBERS, 'seed'].some((name) => parameters.has(name));
  const given = parameters.getAll('lane').slice(0, MOST_LANES);
  $('lane-list').replaceChildren();
  for (const lane of given.length > 0 ? given : ['|', 'fixed|']) addLane(...lane.split('|'));
  kindChanged();
}

function kindChanged() {
  const kind = field('kind').value;
  $('hint').textContent = HINTS[kind];
  $('system').hidden = kind !== 'chat';
  $('suffix').hidden = kind !== 'text';
  const isDecision = kind === 'decision';
  $('asked').hidden = !isDecision;
  $('options').hidden = field('answers').value === 'predicate';
  field('question').required = isDecision;
  for (const id of ['lanes', 'more']) $(id).hidden = isDecision;
  field('max_tokens').disabled = kind === 'template';
  $('prompt-label').textContent = { text: 'Prompt', chat: 'Message', template: 'Template', decision: 'State' }[kind];
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied`);
  } catch {
    say(text);
  }
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
function curlOf(lane) {
  const isDecision = field('kind').value === 'decision';
  const { path, body } = isDecision ? { path: 'v1/decisions', body: decisionOf() } : requestOf(lane);
  const { stream: _stream, stream_options: _options, ...plain } = body;
  const parts = [
    `curl ${new URL(path, location.href)}`,
    "-H 'content-type: application/json'",
    `-d ${quoted(JSON.stringify(plain))}`,
  ];
  if (field('key').value) parts.splice(1, 0, '-H "authorization: Bearer $KEY"');
  return parts.join(' ');
}

async function loadModels() {
  const response = await fetch('v1/models', { headers: headers() });
  if (response.status === 401) {
    $('key').hidden = false;
    say('this server wants an API key', true);
    return;
  }
  const { data } = await response.json();
  const chosen = field('model').value || new URLSearchParams(location.hash.slice(1)).get('model');
  field('model').replaceChildren(...data.map(({ id }) => new Option(id, id)));
  if (data.some(({ id }) => id === chosen)) field('model').value = chosen;
  if ($('state').classList.contains('error')) say('');
}

function note(event) {
  const cell = event.target.closest?.('.cell');
  if (!cell) return;
  $('cell').textContent = cell.getAttribute('aria-label');
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  if (field('kind').value === 'decision') decide();
  else generate();
});
field('answers').addEventListener('change', kindChanged);
field('kind').addEventListener('change', kindChanged);
field('key').addEventListener('change', loadModels);
$('add').addEventListener('click', () => addLane());
$('stop').addEventListener('click', () => stop?.abort());
$('share').addEventListener('click', () => {
  history.replaceState(null, '', link());
  copy(location.href, 'link');
});
$('curl').addEventListener('click', () => copy(curlOf(lanes()[0]), 'command'));
$('play').addEventListener('click', play);
$('back').addEventListener('click', () => show((shown ?? passes()) - 1));
$('forth').addEventListener('click', () => show((shown ?? passes()) + 1));
$('pass').addEventListener('input', () => {
  pause();
  show(Number($('pass').value));
});
$('results').addEventListener('pointerover', note);
$('results').addEventListener('pointerdown', note);
$('results').addEventListener('focusin', note);
$('results').addEventListener('keydown', (event) => {
  const cell = event.target.closest('.cell');
  const to = { ArrowRight: 'nextElementSibling', ArrowLeft: 'previousElementSibling' }[event.key];
  const next =
    cell && (to ? cell[to] : { Home: cell.parentNode.firstChild, End: cell.parentNode.lastChild }[event.key]);
  if (!next) return;
  event.preventDefault();
  cell.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
window.addEventListener('hashchange', readLink);

for (const value of SAMPLERS) add($('samplers'), 'option', { value });
for (const value of CACHES) add($('caches'), 'option', { value });
readLink();
loadModels().catch(() => say('the server does not answer', true));
