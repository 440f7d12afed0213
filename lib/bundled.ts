// What is said where a bundler has taken the package apart. Imports no module of Node.js: in a bundle of ES modules, the
// first one fails, with a message that helps nobody.
import { DUltraError } from './errors';

/** The error of a package that is part of a bundle. */
export const bundledError = (): DUltraError =>
  new DUltraError(
    'NATIVE_NOT_FOUND',
    'dultra has become part of a bundle, which leaves out its native addon, its models and its worker files: keep it ' +
      'out of the bundle (--external:dultra of esbuild, "externals" of webpack, "external" of Rollup and Vite, ' +
      'serverExternalPackages: ["dultra"] of Next.js), and install it where the bundle runs',
  );

if (typeof __dirname === 'undefined') throw bundledError();
