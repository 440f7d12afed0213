// The only access to the native addon.
export { native } from './addon';
export { cancellable } from './errors';
export type * from './types';
