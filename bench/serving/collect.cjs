// Preloaded into the server of bench/serving.cjs: it collects its garbage when it is sent SIGUSR2, so that what is left
// can be told from what is only not collected yet.
const { setFlagsFromString } = require('node:v8');
const { runInNewContext } = require('node:vm');

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc');
process.on('SIGUSR2', () => collect());
