// Figures published by others, for comparison: not measured here, and marked as published wherever they are shown.

/** One published figure. */
export interface PublishedFigure {
  method: string;
  /** As of `datasets`. */
  dataset: 'gsm8k' | 'math500' | 'humaneval' | 'mbpp';
  /** Percent. */
  accuracy: number;
  /** Forward passes per answer; null: not published. */
  nfe: number | null;
  /** Tokens per forward pass, by its source's rule; null: not published. */
  tokensPerForward: number | null;
  /** Source of the figure. */
  source: string;
}

type Row = [accuracy: number, speed: number][];

const DATASETS = ['gsm8k', 'math500', 'humaneval', 'mbpp'] as const;

const DULTRA = 'dUltra README, overview figure (digitised, ± 0.2), LLaDA-8B family, 256 tokens, block 128';
const AUP_BOARD = "d3LLM's AUP leaderboard, data_llada.yaml";
const TAD = 'TAD (arXiv 2605.09536), data file in the AUP format';

const byNfe: Readonly<Record<string, Partial<Record<(typeof DATASETS)[number], [accuracy: number, nfe: number]>>>> = {
  'dUltra-math-b128': { gsm8k: [77.65, 16.4], math500: [33.64, 26.5] },
  'dUltra-coding-b128': { gsm8k: [79.48, 20.2], math500: [34.2, 30.9], humaneval: [36.83, 21.8], mbpp: [39.12, 14.8] },
  'dParallel, factor': { gsm8k: [75.66, 24.1], math500: [31.4, 28.5], humaneval: [30.49, 23.7], mbpp: [36, 18.1] },
  'd3LLM, factor': { gsm8k: [69.07, 21.4], math500: [31.4, 26.7], humaneval: [32.32, 24.5], mbpp: [33.8, 26.4] },
  'Fast-dLLM, factor, no cache': {
    gsm8k: [75.66, 54.4],
    math500: [32.6, 75.1],
    humaneval: [35.4, 61.5],
    mbpp: [37.8, 56.9],
  },
};

/** Accuracy and tokens per forward pass, in the order of the data sets. */
const byTpf: readonly [method: string, source: string, row: Row][] = [
  [
    'LLaDA',
    AUP_BOARD,
    [
      [72.55, 1],
      [32.2, 1],
      [38.28, 1],
      [41.72, 1],
    ],
  ],
  [
    'Fast-dLLM-LLaDA',
    AUP_BOARD,
    [
      [74.68, 2.77],
      [30.82, 1.97],
      [37.8, 2.56],
      [38.6, 2.13],
    ],
  ],
  [
    'D2F-LLaDA',
    AUP_BOARD,
    [
      [74.39, 2.88],
      [28.94, 2.66],
      [40.64, 2.69],
      [39, 2.13],
    ],
  ],
  [
    'dParallel-LLaDA',
    AUP_BOARD,
    [
      [72.63, 5.14],
      [30.18, 3.17],
      [39.02, 4.93],
      [40, 2.35],
    ],
  ],
  [
    'd3LLM-LLaDA',
    AUP_BOARD,
    [
      [73.09, 9.11],
      [30.36, 5.74],
      [39.63, 5.95],
      [40.6, 4.21],
    ],
  ],
  [
    'TAD-LLaDA-Quality',
    TAD,
    [
      [79.91, 6.32],
      [42.66, 4.49],
      [42.07, 6.11],
      [41.6, 3.38],
    ],
  ],
  [
    'TAD-LLaDA-Speed',
    TAD,
    [
      [78.77, 8.47],
      [40.4, 5.17],
      [39.63, 5.96],
      [40.6, 3.42],
    ],
  ],
];

/** Published figures of models of the LLaDA-8B family. */
export const PUBLISHED: readonly PublishedFigure[] = [
  ...Object.entries(byNfe).flatMap(([method, row]) =>
    DATASETS.flatMap((dataset) => {
      const figure = row[dataset];
      return figure
        ? [{ method, dataset, accuracy: figure[0], nfe: figure[1], tokensPerForward: null, source: DULTRA }]
        : [];
    }),
  ),
  ...byTpf.flatMap(([method, source, row]) =>
    row.map(([accuracy, tokensPerForward], i) => ({
      method,
      dataset: DATASETS[i],
      accuracy,
      nfe: null,
      tokensPerForward,
      source,
    })),
  ),
];
