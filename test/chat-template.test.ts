// Chat templates against recorded texts of Jinja, set up as transformers sets it up.
import { render, TemplateError } from '../lib/model/chat-template/render';
import recorded from './fixtures/chat-templates.json';

const { variables } = recorded;

test('the recorded templates are there', () => {
  expect(recorded.constructs.length).toBeGreaterThan(600);
  expect(recorded.refused.length).toBeGreaterThan(100);
});

test.each(recorded.constructs as [string, string][])('%s', (template, text) => {
  expect(render(template, variables)).toBe(text);
});

test('a default of a macro is read before the macro assigns to the same name', () => {
  const template = '{% macro m(a, b=n) %}{% set n = 1 %}{{ [a, b, n] }}{% endmacro %}{{ m(0) }}{{ n }}';
  expect(render(template, { n: 7 })).toBe('[0, 7, 1]7');
});

test.each(recorded.refused)('refused: %s', (template) => {
  expect(() => render(template, variables)).toThrow(TemplateError);
});

describe('whole templates', () => {
  const templates = recorded.templates as Record<string, string>;
  const talks = recorded.talks as Record<string, { role: string; content: string }[]>;
  test.each(recorded.conversations.map((one) => [one.name, one.talk, one.add_generation_prompt, one.text] as const))(
    '%s, %s, generation prompt %s',
    (name, talk, add_generation_prompt, text) => {
      const use = () =>
        render(templates[name], {
          ...recorded.special,
          messages: talks[talk],
          tools: null,
          documents: null,
          add_generation_prompt,
        });
      if (text === null) expect(use).toThrow(TemplateError);
      else expect(use()).toBe(text);
    },
  );
});

describe('what is refused is named', () => {
  const wrong: [string, RegExp][] = [
    ['{{ messages | pprint }}', /^the filter "pprint" is not supported$/],
    ['{{ 1 is sameas 1 }}', /^the test "sameas" is not supported$/],
    ['{% include "other" %}', /^the tag "include" is not supported$/],
    ['{{ "a".encode() }}', /"encode" of a value of type str is not supported/],
    ['{{ lipsum() }}', /the function "lipsum" is not supported/],
    ['{{ raise_exception("roles must alternate") }}', /^roles must alternate$/],
    ['{{ missing.name }}', /^"missing" is undefined and has no "name"$/],
    ['{% for a in b', /unexpected "end of the template"/],
    ['{% if true %}', /missing elif or else or endif/],
    ['{{ 1 | upper(2) }}', /upper: expected at most 0 arguments, got 1/],
  ];
  test.each(wrong)('%s', (template, message) => {
    expect(() => render(template, {})).toThrow(message);
  });
});

test.each([
  ['a loop in a loop', '{% for a in range(99999) %}{% for b in range(99999) %}{% set c = 1 %}{% endfor %}{% endfor %}'],
  [
    'text that doubles',
    '{% set ns = namespace(t="x") %}{% for a in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}',
  ],
  ['a list that grows', '{{ [0] * 9999999999 }}'],
  ['a large power', '{{ 9 ** 999999 }}'],
])('%s ends', (_name, template) => {
  expect(() => render(template, {})).toThrow(TemplateError);
});

test('a macro that calls itself for ever is an error', () => {
  expect(() => render('{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}', {})).toThrow();
});

test('the date is today', () => {
  const now = new Date();
  const months = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];
  const day = String(now.getDate()).padStart(2, '0');
  expect(render('{{ strftime_now("%d %b %Y") }}', {})).toBe(`${day} ${months[now.getMonth()]} ${now.getFullYear()}`);
  expect(() => render('{{ strftime_now("%c") }}', {})).toThrow(/strftime_now: %c is not supported/);
});

test('numbers of messages are ints where they are whole, and null is None', () => {
  const messages = [{ role: 'user', content: 'x', meta: { n: 3, f: 0.5, none: null, list: [true, 1e21] } }];
  expect(render('{{ messages[0].meta }}', { messages })).toBe(
    "{'n': 3, 'f': 0.5, 'none': None, 'list': [True, 1e+21]}",
  );
});

test('long runs of white space take no long time', () => {
  const gap = ' '.repeat(300_000);
  expect(render('a{{ x.strip() | trim }}b', { x: `${gap}y${gap}z${gap}` })).toBe(`ay${gap}zb`);
  expect(render(`a${gap}b${gap}{{- x }}`, { x: 'y' })).toBe(`a${gap}by`);
});
