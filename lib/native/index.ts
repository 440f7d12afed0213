// The only access to the native addon.
export { addonReport, native } from './addon';
export { cancellable } from './errors';
export { SelectedResult, StepResult, type StepRow } from './step-result';
export type * from './types';
