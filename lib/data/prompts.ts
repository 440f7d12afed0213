// The prompts of the reference's runs, word for word: what its published figures were measured with.
//
// Source: chinsengi/dUltra-os, diffu_grpo/data_utils.py (training), eval_math/gsm8k.py, eval_math/math500.py and the
// humaneval_instruct and mbpp_instruct tasks of eval_coding (evaluation).
import { dedent } from '../text';
import type { ChatMessage } from '../types';

/**
 * Which prompts: "thinking" and "non-thinking" are those of the reference's training, a system message and the
 * question; "evaluation" those of its measurements, one user message.
 */
export type PromptStyle = 'thinking' | 'non-thinking' | 'evaluation';

/** The styles, by name. */
export const PROMPT_STYLES = ['thinking', 'non-thinking', 'evaluation'] as const;

const MATH_STEPS = String.raw`You are a math expert.
Follow these rules:
1) Carefully read the question and identify what is being asked.
2) Solve the problem step by step, showing the intermediate reasoning.
3) Present the final answer inside \boxed{}.`;

const MATH_THINKING =
  `You are a math expert. To answer the user's question, first write your full reasoning inside ` +
  `<think></think>. After thinking, provide only the final result inside an <answer></answer> block, ` +
  String.raw`wrapping the answer in \boxed{}.`;

const CODE_THINKING =
  `You are an expert Python programmer. Carefully read the task description and unit tests,and write a ` +
  `correct and efficient python implementation. To answer the user's question, you first think about the ` +
  `reasoning process and then provide the user with the answer. The reasoning process and answer are ` +
  `enclosed within <think> </think> and a \`\`\`python\`\`\` code block, respectively, i.e., <think> ` +
  `reasonin
\`\`\`python
answer code here
\`\`\`.`;

const CODE_PLAIN =
  'You are an expert Python programmer. Carefully read and think about the task provided and write ' +
  'correct, efficient Python code that solves the problem and passes the hidden tests. Wrap the final code ' +
  'inside a ```python``` code block.';

const trim = (text: string) => text.trim();
const user = (content: string): ChatMessage => ({ role: 'user', content });
const withSystem = (system: string, content: string): ChatMessage[] => [
  { role: 'system', content: system },
  user(trim(content)),
];

/** The prompt of a mathematical question. */
export function mathPrompt(question: string, style: PromptStyle): ChatMessage[] {
  // The reference's system text for evaluation ends with a newline, which it keeps.
  if (style === 'evaluation') return [user(`${MATH_STEPS}\n\n\n${question}`)];
  return withSystem(style === 'thinking' ? MATH_THINKING : MATH_STEPS, question);
}

/**
 * The prompt of a problem of APPS; the reference trains on it but does not evaluate, so "evaluation" is "non-thinking".
 */
export function appsPrompt(question: string, starterCode: string, style: PromptStyle): ChatMessage[] {
  const thinking = style === 'thinking';
  const sections = [trim(dedent(question)), ...(starterCode ? [`Starter code:\n${trim(starterCode)}`] : [])].filter(
    (section) => section !== '',
  );
  const suffix = thinking ? 'Make sure to include all your thinking steps.' : '';
  const request = trim(dedent(`Write a solution to the following problem:\n${sections.join('\n\n')}. ${suffix}`));
  return withSystem(thinking ? CODE_THINKING : CODE_PLAIN, request);
}

/** The prompt of a problem of HumanEval: `prompt` is the head of the function. */
export function humanEvalPrompt(prompt: string, style: PromptStyle): ChatMessage[] {
  const request = `Write a solution to the following problem and make sure that it passes the tests:\n${prompt}`;
  return style === 'evaluation'
    ? [user(request)]
    : withSystem(style === 'thinking' ? CODE_THINKING : CODE_PLAIN, request);
}

/** The prompt of a problem of MBPP, with its first three tests. */
export function mbppPrompt(text: string, tests: readonly string[], style: PromptStyle): ChatMessage[] {
  const request =
    `You are an expert Python programmer, and here is your task: ${text} Your code should pass these ` +
    `tests:\n\n${tests.slice(0, 3).join('\n')}. Respond with the completed solution inside a ` +
    `\`\`\`python\`\`\` code block.`;
  return style === 'evaluation'
    ? [user(request)]
    : withSystem(style === 'thinking' ? CODE_THINKING : CODE_PLAIN, request);
}
