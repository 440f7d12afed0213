import { CACHE_HELP, CACHE_NAMES, parseSampler, SAMPLER_HELP, SAMPLER_NAMES, type SamplerObject } from '../lib';

test.each<[string, SamplerObject]>([
  ['planner', { type: 'planner' }],
  ['planner:bernoulli', { type: 'planner', select: 'bernoulli' }],
  [
    'planner:select=topk:probabilityScale=1.5:plannerTemperature=0.7',
    { type: 'planner', select: 'topk', probabilityScale: 1.5, plannerTemperature: 0.7 },
  ],
  ['planner:1.5', { type: 'planner', probabilityScale: 1.5 }],
  ['planner-round', { type: 'planner', select: 'round' }],
  ['planner-round:1.1', { type: 'planner', select: 'round', probabilityScale: 1.1 }],
  ['planner-cut:0.3', { type: 'planner', select: 'threshold', cut: 0.3 }],
  ['entropy-sum:0.2', { type: 'entropy-sum', gamma: 0.2 }],
  ['geometric:0.5', { type: 'geometric', phi: 0.5 }],
  ['geometric:0.5:order=left_to_right', { type: 'geometric', phi: 0.5, order: 'left_to_right' }],
  ['confidence', { type: 'confidence' }],
  ['confidence:0.9', { type: 'confidence', threshold: 0.9 }],
  [' confidence:threshold=.5 ', { type: 'confidence', threshold: 0.5 }],
  ['factor:1', { type: 'factor', factor: 1 }],
  ['factor:1.5:lastPair=true', { type: 'factor', factor: 1.5, lastPair: true }],
  ['entropy:0.45', { type: 'entropy', threshold: 0.45 }],
  ['fixed:16', { type: 'fixed', steps: 16 }],
  ['fixed', { type: 'fixed' }],
  ['random:16', { type: 'fixed', remasking: 'random', steps: 16 }],
  ['fixed:16:remasking=low_entropy', { type: 'fixed', remasking: 'low_entropy', steps: 16 }],
  ['fixed:16:schedule=linear', { type: 'fixed', steps: 16, schedule: 'linear' }],
  ['confidence:0.9:steps=8', { type: 'confidence', threshold: 0.9, steps: 8 }],
  ['entropy-sum:0.35:largest=included', { type: 'entropy-sum', gamma: 0.35, largest: 'included' }],
  ['sequential:4', { type: 'dynamic', order: 'left_to_right', steps: 4 }],
  ['dream:64', { type: 'dream', steps: 64 }],
  ['dream:maskgit_plus:steps=8:algTemp=0.2', { type: 'dream', alg: 'maskgit_plus', steps: 8, algTemp: 0.2 }],
  ['sub-blocks:0.8:length=4:partCache=true', { type: 'sub-blocks', threshold: 0.8, length: 4, partCache: true }],
  ['d3llm:0.5', { type: 'd3llm', threshold: 0.5 }],
  [
    'd3llm:0.45:blockAddThreshold=0.1:decodedTokenThreshold=0.95',
    { type: 'd3llm', threshold: 0.45, blockAddThreshold: 0.1, decodedTokenThreshold: 0.95 },
  ],
])('%s', (text, sampler) => {
  expect(parseSampler(text)).toEqual(sampler);
});

test.each<[string, RegExp]>([
  ['', /sampler: expected planner, planner-round, .*, got ""/],
  ['best', /sampler: expected planner, .*, got "best"/],
  ['constructor', /sampler: expected planner/],
  ['confidence:', /sampler\.threshold: expected a number, got ""/],
  ['confidence:high', /sampler\.threshold: expected a number, got "high"/],
  ['confidence:NaN', /sampler\.threshold: expected a number/],
  ['confidence:1.5', /sampler\.threshold: expected a finite number at least 0 and at most 1, got 1\.5/],
  ['confidence:factor=1', /confidence takes threshold, steps; got "factor"/],
  ['confidence:0.9:0.8', /threshold is given twice/],
  ['planner:most', /sampler\.select: expected "topk" or "round" or "threshold" or "bernoulli", got "most"/],
  ['factor:1:lastPair=yes', /sampler\.lastPair: expected "true" or "false", got "yes"/],
  ['fixed:1.5', /sampler\.steps: expected an integer/],
  ['dream:best', /sampler\.alg: expected "entropy" or "maskgit_plus" or "topk_margin" or "origin", got "best"/],
  ['dream:eps=1', /sampler\.eps: expected a finite number/],
  ['sub-blocks:length=0', /sampler\.length: expected an integer at least 1/],
  ['random:remasking=random', /random takes steps; got "remasking"/],
])('%j is refused', (text, message) => {
  expect(() => parseSampler(text)).toThrow(RangeError);
  expect(() => parseSampler(text)).toThrow(message);
});

test('every name parses, and none holds a comma', () => {
  for (const name of SAMPLER_NAMES)
    expect(name.includes(',') ? null : parseSampler(name).type).toEqual(expect.any(String));
  expect(() => parseSampler(5 as never)).toThrow(TypeError);
});

test.each([
  ['sampler', SAMPLER_NAMES, SAMPLER_HELP],
  ['cache', CACHE_NAMES, CACHE_HELP],
])('the help has an entry for every %s', (_what, names, help) => {
  expect(help.map(([form]) => form.replace(/\[.*/, ''))).toEqual(names);
  for (const [, text] of help) expect(text.length).toBeGreaterThan(10);
});
