// A process of the role "teacher": it holds the models that only score, and answers the processes that train.

import { wholeGroup } from '../distributed/mpi';
import { DUltraError, optionError } from '../errors';
import { loadModel } from '../generation/load-model';
import { loadCausalModel } from '../model/load-causal-model';
import type { LoadModelOptions } from '../model/load-weights';
import { checkKeys } from '../options';
import { causalLogProb } from '../rewards';
import { checkConfig } from './config';
import { scoreReferenceSteps } from './grpo/decision-gradient';
import { judgeRows } from './grpo/reward-rows';
import { answerRequests, type Scorer } from './grpo/teacher-ranks';
import { scoreReferenceRows } from './grpo/token-gradient';
import { scoreCompletions } from './grpo/token-teacher';
import type { TrainConfig } from './presets';
import { makeReward } from './reward-config';
import { endParts, partByRole, roleOf, rolesOf, scorersOf } from './roles';

/** Where the models of {@link serveTeachers} compute. */
export type TeacherDevice = Pick<LoadModelOptions, 'device' | 'threads'>;

/** What scores, by name. @param models gets what has to be disposed of in the end */
async function loadScorers(
  config: TrainConfig,
  device: TeacherDevice,
  models: { dispose(): void }[],
): Promise<Record<string, Scorer>> {
  const scorers: Record<string, Scorer> = {};
  const wanted = scorersOf(config);
  const { teacher, rewards = {}, referenceModel, objective = 'dultra' } = config;
  if (teacher !== undefined) {
    const { model, dtype } = teacher;
    const loaded = await loadCausalModel(model, { ...device, ...(dtype && { dtype }) });
    models.push(loaded);
    scorers.teacher = (rows) => scoreCompletions(loaded, rows);
    if (wanted.includes('reward teacher') && rewards.teacher === undefined) {
      const reward = causalLogProb({ model: loaded });
      scorers['reward teacher'] = (rows, about) => judgeRows(reward, rows, about);
    }
  }
  for (const [name, reward] of Object.entries(rewards)) {
    if (!wanted.includes(`reward ${name}`)) continue;
    const fn = await makeReward(name, reward, { others: models, device });
    scorers[`reward ${name}`] = (rows, about) => judgeRows(fn, rows, about);
  }
  if (wanted.includes('reference') && referenceModel !== undefined) {
    const model = await loadModel(referenceModel, device);
    models.push(model);
    if (objective === 'dultra' && !model.hasPlanner)
      throw new DUltraError('NO_PLANNER', 'referenceModel: the reference has no planner head');
    const trainer = await model.createTrainer({ freezeBase: true, freezePlanner: true });
    scorers.reference =
      objective === 'dultra'
        ? (rollouts, scoring) => scoreReferenceSteps({ model, trainer }, rollouts, scoring)
        : (rows, scoring) => scoreReferenceRows(trainer, rows, scoring);
  }
  return scorers;
}

/**
 * Scores for the processes that train, until they have ended: what a process of the role "teacher" (`roleOf`) does
 * where others call `runConfig` with the same configuration. It loads the teacher, the models of rewards and the
 * reference model of the KL term, and takes no part in gradients.
 * @param config of the stage "grpo", with the key `roles` @param options `device` and `threads` as of `loadModel`
 * @throws TypeError, RangeError for the configuration; DUltraError DISTRIBUTED where processes differ; as `loadModel`
 */
export async function serveTeachers(config: TrainConfig, options: TeacherDevice = {}): Promise<void> {
  checkKeys('options', options, ['device', 'threads']);
  checkConfig('grpo', config);
  const roles = rolesOf(config, wholeGroup().size);
  if (roles === null || roleOf(config) !== 'teacher')
    throw optionError(RangeError, 'roles', 'expected the role "teacher" for this process, which is to train');
  const models: { dispose(): void }[] = [];
  try {
    const { sides, loaded } = await partByRole(config, roles, () => loadScorers(config, options, models));
    await answerRequests(sides.train, loaded);
    endParts();
  } finally {
    for (const model of models) model.dispose();
  }
}
