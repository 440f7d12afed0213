// The one door to the native addon.
export { native } from './addon';
export { convertNativeError, fromNative } from './errors';
export type * from './types';
