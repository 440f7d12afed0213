// decision.json beside a checkpoint's weights: templates, questions that the model was trained on, and its calibration.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { z } from 'zod';
import { isOptionError } from '../errors';
import { badFile, checkFields, readJsonObject } from '../files/json';
import { checkQuestion, type Question, type QuestionType } from './questions';
import { CHAT_TEMPLATES, checkTemplates, type DecisionTemplates, PLAIN_TEMPLATES } from './template';

export const DECISION_FILE = 'decision.json';

/** What `dultra calibrate` found: it holds for these weights and these templates alone. */
export interface Calibration {
  /** `model.weightsHash()` */
  weights: string;
  /** Of templates, scorers, orders and priors. */
  template: string;
  /** Of each type of question that was calibrated: what scores are divided by, and how many answers say so. */
  types: Partial<Record<QuestionType, { temperature: number; answers: number }>>;
}

/** How a checkpoint decides. */
export interface DecisionSettings {
  templates: DecisionTemplates;
  /** Questions that the checkpoint knows, by name. */
  questions: Readonly<Record<string, Question>>;
  calibration: Calibration | null;
}

const hash = z.string().regex(/^[0-9a-f]{64}$/, 'expected a SHA-256 in hex');
const temperature = z.strictObject({ temperature: z.number().positive().max(1e6), answers: z.int().positive() });
const calibrationSchema = z.strictObject({
  weights: hash,
  template: hash,
  types: z.strictObject({
    boolean: temperature.optional(),
    choice: temperature.optional(),
    score: temperature.optional(),
  }),
});
const schema = z.strictObject({
  version: z.literal(1),
  templates: z.record(z.string(), z.unknown()).optional(),
  questions: z.record(z.string(), z.unknown()).optional(),
  calibration: calibrationSchema.optional(),
});

/** Whether a value is what `dultra calibrate` writes. */
export const isCalibration = (value: unknown): value is Calibration => calibrationSchema.safeParse(value).success;

/** Templates for models that say nothing of their own. */
const builtIn = (hasChatTemplate: boolean): DecisionTemplates => (hasChatTemplate ? CHAT_TEMPLATES : PLAIN_TEMPLATES);

/** What decision.json holds. */
export interface DecisionFile {
  version: 1;
  /** For some types of questions or all; the others have the built-in ones. */
  templates?: Partial<DecisionTemplates> | undefined;
  questions?: Readonly<Record<string, Question>> | undefined;
  calibration?: Calibration | undefined;
}

/**
 * Checks what was read from a decision.json. @param file named in errors
 * @throws DUltraError BAD_CHECKPOINT naming the field, what was expected and what came
 */
export function parseDecisionFile(json: unknown, file: string): DecisionFile {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) throw badFile(file, 'expected a JSON object');
  const {
    version,
    templates,
    questions = {},
    calibration,
  } = checkFields(schema, json as Record<string, unknown>, file);
  try {
    if (templates !== undefined) checkTemplates('templates', templates, PLAIN_TEMPLATES);
    for (const [name, question] of Object.entries(questions)) checkQuestion(`questions.${name}`, question);
  } catch (error) {
    if (!isOptionError(error)) throw error;
    throw badFile(file, error.message, error);
  }
  return {
    version,
    templates: templates as DecisionFile['templates'],
    questions: questions as Record<string, Question>,
    calibration: calibration as Calibration | undefined,
  };
}

/**
 * What decision.json in a folder says, or what applies without it. @param folder null: there is no folder
 * @throws DUltraError BAD_CHECKPOINT naming the field, what was expected and what came
 */
export async function readDecisions(folder: string | null, hasChatTemplate: boolean): Promise<DecisionSettings> {
  const base = builtIn(hasChatTemplate);
  const file = folder === null ? null : path.join(folder, DECISION_FILE);
  if (file === null || !existsSync(file)) return { templates: base, questions: {}, calibration: null };
  const { templates = {}, questions = {}, calibration = null } = parseDecisionFile(await readJsonObject(file), file);
  return { templates: checkTemplates('templates', templates, base), questions, calibration };
}
