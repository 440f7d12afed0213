// prebuildify starts node-gyp, which insists on Node's headers although bindings.gyp compiles nothing itself: point it at the running
// Node's own where it has them, so that nothing is downloaded.
const { existsSync } = require('node:fs');
const path = require('node:path');

const prefix = path.resolve(process.execPath, '..', '..');
if (!process.env.npm_config_nodedir && existsSync(path.join(prefix, 'include/node/node.h'))) process.env.npm_config_nodedir = prefix;
require('prebuildify')({ napi: true, strip: true, tagLibc: true, targets: [] }, (error) => {
  if (!error) return;
  process.stderr.write(`dultra: ${error.message}\n`);
  process.exit(1);
});
