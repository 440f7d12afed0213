// What the pictures are drawn with: colours for light and dark, letters that a phone shows large enough, axes.

const escapeXml = (text) =>
  text.replace(/[&<>"]/g, (character) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[character]);
const at = (value) => String(Math.round(10 * value) / 10);

/**
 * Every picture is so wide that its letters can be read on a phone, which shows it in about 358 pixels; a page on a
 * large screen shows it in SHOWN.
 */
const WIDTH = 480;
const SHOWN = 620;
const LEFT = 18;
const RIGHT = WIDTH - LEFT;

/** Colours in light and in dark: of letters and marks, and of the steps, one after the other. */
const COLORS = {
  card: ['#ffffff', '#0d1117'],
  rule: ['#d8dee4', '#30363d'],
  edge: ['#79818a', '#7d8590'],
  fg: ['#1b1f24', '#e6edf3'],
  soft: ['#57606a', '#9198a1'],
  good: ['#116329', '#5bd67f'],
  bad: ['#c01c28', '#ff7b82'],
  before: ['#57606a', '#a8b1bb'],
  after: ['#0550ae', '#6cb2ff'],
  planner: ['#c01c28', '#ff7b82'],
  bf16: ['#a34a00', '#ffae57'],
  s0: ['#cfe3fb', '#1f3f63'],
  s1: ['#cdeed6', '#1d4a2b'],
  s2: ['#fde7b3', '#5a4510'],
  s3: ['#f6d3e6', '#57284a'],
  s4: ['#ddd6f8', '#3a3268'],
  s5: ['#fad4c2', '#5e3220'],
  s6: ['#c6ecee', '#124848'],
  s7: ['#e6e1d3', '#45402f'],
};
const STEP_COLORS = 8;
const FONT = 'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"';
const SANS = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"';
const SIZE = 15;
const CHARACTER = 9.1; // width of one at 15 px, generously

/** Attributes that fill or outline in a colour of COLORS; the dark one follows the reader's choice. */
const fill = (name) => `class="f-${name}" fill="${COLORS[name][0]}"`;
const stroke = (name) => `class="l-${name}" stroke="${COLORS[name][0]}"`;

/** A picture on a card, with what it shows in words for those who cannot see it. */
function svg(height, title, body, style = '') {
  const rows = Object.entries(COLORS).filter(([name]) => new RegExp(`class="[fl]-${name}[" ]`).test(body));
  const dark = [['card', COLORS.card], ['rule', COLORS.rule], ...rows].map(
    ([name, [, color]]) => `.f-${name}{fill:${color}}.l-${name}{stroke:${color}}`,
  );
  const css = `${style}@media (prefers-color-scheme:dark){${[...new Set(dark)].join('')}}`;
  const card = `<rect x="0.5" y="0.5" width="${WIDTH - 1}" height="${Math.ceil(height) - 1}" rx="10" class="f-card l-rule" fill="#ffffff" stroke="#d8dee4"/>`;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${Math.ceil(height)}" width="${SHOWN}" role="img">` +
    `<title>${escapeXml(title)}</title><style>${css}</style>${card}${body}</svg>\n`
  );
}

function text(x, y, content, { size = SIZE, color = 'fg', font = SANS, anchor = 'start', weight = 400 } = {}) {
  return `<text x="${at(x)}" y="${at(y)}" font-size="${size}" ${fill(color)} ${font} text-anchor="${anchor}" font-weight="${weight}">${escapeXml(content)}</text>`;
}

const HEIGHT = 430;
const MARGIN = { top: 108, right: 20, bottom: 56, left: 58 };
const TICKS = [1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24];

/** Axes of accuracy against forward passes, and the places of both; `most` passes. */
function plot(most) {
  const x = (nfe) => MARGIN.left + (Math.log(Math.max(1, nfe)) / Math.log(most)) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (accuracy) => MARGIN.top + (1 - accuracy) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const axes = [];
  for (let share = 0; share <= 10; share += 2)
    axes.push(
      `<line x1="${MARGIN.left}" x2="${WIDTH - MARGIN.right}" y1="${at(y(share / 10))}" y2="${at(y(share / 10))}" ${stroke('rule')}/>`,
      text(MARGIN.left - 8, y(share / 10) + 5, `${share * 10} %`, { size: 14, anchor: 'end', color: 'soft' }),
    );
  for (const tick of TICKS.filter((value) => value <= most))
    axes.push(
      `<line x1="${at(x(tick))}" x2="${at(x(tick))}" y1="${MARGIN.top}" y2="${HEIGHT - MARGIN.bottom}" ${stroke('rule')}/>`,
      text(x(tick), HEIGHT - MARGIN.bottom + 19, String(tick), { size: 14, anchor: 'middle', color: 'soft' }),
    );
  axes.push(
    text(LEFT, MARGIN.top - 14, 'right answers, ↑ more is better'),
    text(RIGHT, HEIGHT - 12, '← fewer is better · forward passes per answer', { anchor: 'end' }),
  );
  return { x, y, axes };
}

/**
 * A line of a plot: its row `i` of the legend, the curve through points of { nfe, accuracy, error } with bars of
 * `error`.
 */
function curve({ x, y }, i, { label, color, dash = '', points }) {
  const dashes = dash && ` stroke-dasharray="${dash}"`;
  const path = points.map(({ nfe, accuracy }) => `${at(x(nfe))},${at(y(accuracy))}`).join(' ');
  const bars = points.map(
    ({ nfe, accuracy, error }) =>
      `<line x1="${at(x(nfe))}" x2="${at(x(nfe))}" y1="${at(y(Math.min(1, accuracy + error)))}" y2="${at(y(Math.max(0, accuracy - error)))}" ${stroke(color)}/>`,
  );
  const top = 26 + 21 * i;
  return [
    bars.join(''),
    `<polyline points="${path}" fill="none" ${stroke(color)} stroke-width="2.5"${dashes}/>`,
    `<line x1="${LEFT}" x2="${LEFT + 26}" y1="${top - 5}" y2="${top - 5}" ${stroke(color)} stroke-width="3"${dashes}/>`,
    text(LEFT + 34, top, label, { size: 15, color }),
  ].join('');
}

module.exports = {
  CHARACTER,
  FONT,
  HEIGHT,
  LEFT,
  RIGHT,
  STEP_COLORS,
  at,
  curve,
  escapeXml,
  fill,
  plot,
  stroke,
  svg,
  text,
};
