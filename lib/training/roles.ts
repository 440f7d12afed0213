// Which processes of a job train, and which hold the models that score for them: teachers, and the reference of the KL
// term.
import { checkAlike } from '../distributed/alike';
import { joinParts, splitGroup, wholeGroup } from '../distributed/mpi';
import { optionError } from '../errors';
import { omit } from '../options';
import { range } from '../packing';
import { show } from '../text';
import { PUBLISHED } from './grpo/objective-options';
import type { Objective } from './grpo/objectives';
import type { Stage, TrainConfig } from './presets';

/** What a process of a job does. */
export type Role = 'train' | 'teacher';

/** Processes of each role: the first ones train. */
export type Roles = Readonly<Record<Role, number>>;

const FORM = 'expected processes by role, such as "train:6,teacher:2"';

/** Reads a map of roles such as "train:6,teacher:2". @throws TypeError, RangeError */
export function parseRoles(text: unknown): Roles {
  if (typeof text !== 'string') throw optionError(TypeError, 'roles', `${FORM}, got ${show(text)}`);
  const roles: Record<Role, number> = { train: 0, teacher: 0 };
  for (const part of text.split(',')) {
    const [, name, count] = /^\s*([^:\s]+)\s*:\s*(\d{1,7})\s*$/.exec(part) ?? [];
    if (name === undefined) throw optionError(RangeError, 'roles', `${FORM}, got ${show(text)}`);
    if (name !== 'train' && name !== 'teacher')
      throw optionError(RangeError, 'roles', `expected the roles "train" and "teacher", got ${show(name)}`);
    if (roles[name] > 0) throw optionError(RangeError, 'roles', `expected each role once, got ${show(text)}`);
    roles[name] = Number(count);
    if (roles[name] === 0)
      throw optionError(RangeError, 'roles', `expected at least 1 process of a role, got ${show(text)}`);
  }
  if (roles.train === 0) throw optionError(RangeError, 'roles', `expected processes that train, got ${show(text)}`);
  return roles;
}

/** The models of a configuration that only score, by what they score; those that processes of the role "teacher" hold. */
export function scorersOf({ teacher, rewards, beta, klTo, objective, referenceModel }: TrainConfig): string[] {
  const isTeacher = ({ type }: { type: string }) => type === 'causalLogProb' || type === 'teacherLogProb';
  const usual = PUBLISHED[(objective ?? 'dultra') as Objective]?.klTo;
  const isCompared = (beta ?? 0) > 0 && (klTo ?? usual) === 'reference';
  return [
    ...(teacher === undefined ? [] : ['teacher']),
    ...(teacher !== undefined && rewards === undefined ? ['reward teacher'] : []),
    ...(isCompared && referenceModel !== undefined ? ['reference'] : []),
    ...Object.entries(rewards ?? {}).flatMap(([name, reward]) => (isTeacher(reward) ? [`reward ${name}`] : [])),
  ];
}

/**
 * The roles of a configuration; null: all processes do everything. @param processes that there are
 * @throws TypeError, RangeError where the roles do not fit them, or there is nothing for a role to do
 */
export function rolesOf(config: TrainConfig, processes: number): Roles | null {
  if (config.roles === undefined) return null;
  const roles = parseRoles(config.roles);
  const sum = roles.train + roles.teacher;
  if (sum !== processes)
    throw optionError(
      RangeError,
      'roles',
      `expected the roles of ${processes} ${processes === 1 ? 'process' : 'processes'}, as many as there are, got ` +
        `${show(config.roles)}, of ${sum}`,
    );
  return roles.teacher === 0 ? null : roles;
}

/** Checks the key `roles`, whatever the number of processes. @throws TypeError, RangeError */
export function checkRoles(stage: Stage, config: TrainConfig): void {
  if (config.roles === undefined) return;
  const { teacher } = parseRoles(config.roles);
  if (stage !== 'grpo')
    throw optionError(RangeError, 'roles', `expected none with the stage "${stage}", which has no teacher`);
  if (teacher > 0 && scorersOf(config).length === 0)
    throw optionError(
      RangeError,
      'roles',
      'expected a teacher, a reward causalLogProb or teacherLogProb, or a referenceModel with a KL term, for the role ' +
        '"teacher"; this configuration has none',
    );
}

/**
 * What this process does in a training: "teacher" calls `serveTeachers`, and "train" `runConfig`.
 * @throws TypeError, RangeError where `config.roles` does not fit the processes of the job
 */
export function roleOf(config: TrainConfig): Role {
  const { rank, size } = wholeGroup();
  const roles = rolesOf(config, size);
  return roles !== null && rank >= roles.train ? 'teacher' : 'train';
}

const { version } = require('../../package.json') as { version: string };

/** Color of a role, by which the job is parted. */
const COLORS: Readonly<Record<Role, number>> = { train: 0, teacher: 1 };

/** The two sides of a parted job: ranks among all processes. */
export interface Sides {
  train: number[];
  teacher: number[];
}

/**
 * Parts the job by role, when each process has loaded what it needs. Every process calls it.
 * @param load what this process does before the first step can begin
 * @throws DUltraError DISTRIBUTED, naming the process, where one has another version or configuration
 */
export async function partByRole<T>(
  config: TrainConfig,
  roles: Roles,
  load: () => Promise<T>,
): Promise<{ sides: Sides; loaded: T }> {
  const whole = wholeGroup();
  const settings = Object.entries(omit(config as Record<string, unknown>, ['outputDir', 'resume']))
    .filter(([, value]) => typeof value !== 'function')
    .map(([key, value]) => [`option ${key}`, typeof value === 'bigint' ? value.toString() : value]);
  await checkAlike(whole, {
    ...{ 'version of dultra': version, 'version of Node.js': process.version },
    ...Object.fromEntries(settings),
  });
  const loaded = await load();
  await whole.barrier();
  await splitGroup(COLORS[roleOf(config)]);
  const { train, teacher } = roles;
  return { sides: { train: [...range(0, train)], teacher: [...range(train, train + teacher)] }, loaded };
}

/** Ends what {@link partByRole} has begun, for this process. */
export const endParts = (): void => joinParts();
