// The command line as a process of a job, with other arguments on the last rank: test/distributed.test.ts.
const path = require('node:path');

const [ofAll, ofLast] = JSON.parse(process.argv[2]);
const rank = Number(process.env.OMPI_COMM_WORLD_RANK ?? process.env.PMI_RANK);
const size = Number(process.env.OMPI_COMM_WORLD_SIZE ?? process.env.PMI_SIZE);
const main = path.join(__dirname, '..', 'dist', 'cli', 'main.js');
process.argv.splice(1, process.argv.length, main, ...(rank === size - 1 ? ofLast : ofAll));
require('node:module').runMain();
