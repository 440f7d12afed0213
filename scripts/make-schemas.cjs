#!/usr/bin/env node
// Writes schemas/, the JSON Schemas of configuration files, from the built package: node scripts/make-schemas.cjs
const { mkdirSync, writeFileSync } = require('node:fs');
const path = require('node:path');
const { training } = require('..');

for (const stage of training.STAGES) {
  const file = training.configSchemaFile(stage);
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, `${JSON.stringify(training.configSchema(stage), null, 2)}\n`);
}
