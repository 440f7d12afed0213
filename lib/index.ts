// The public names, and nothing else.
export { DUltraError, ERROR_CODES, type ErrorCode, isDUltraError } from './errors';
export * as kernels from './kernels';
export type { DownloadProgress } from './model/download';
export { type LoadModelOptions, loadModel } from './model/load-model';
export { type ForwardOutput, type ForwardRequest, MaskedDiffusionModel } from './model/masked-diffusion-model';
export type { RecordedUniforms } from './sampling/denoise';
export type * from './types';
