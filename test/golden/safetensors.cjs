// Safetensors for fixtures: an independent reader, so that the package's own is not checked against itself, and a
// writer.
const { readFileSync, writeFileSync } = require('node:fs');

const READERS = {
  F32: { size: 4, make: (b) => new Float32Array(b) },
  F64: { size: 8, make: (b) => new Float64Array(b) },
  I32: { size: 4, make: (b) => new Int32Array(b) },
  I64: { size: 8, make: (b) => Float64Array.from(new BigInt64Array(b), Number) },
  BOOL: { size: 1, make: (b) => new Uint8Array(b) },
};

/** name -> { dtype, shape, data }; I64 as exact doubles, BOOL as bytes. */
function readTensors(file) {
  const bytes = readFileSync(file);
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + length));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const [begin, end] = offsets;
    const part = bytes.subarray(8 + length + begin, 8 + length + end);
    // A copy, since typed arrays want alignment.
    tensors[name] = { dtype, shape, data: READERS[dtype].make(new Uint8Array(part).buffer), raw: Buffer.from(part) };
  }
  return tensors;
}

/** Writes tensors as read by readTensors (their raw bytes). */
function writeTensors(file, tensors) {
  const header = {};
  let at = 0;
  for (const [name, tensor] of Object.entries(tensors)) {
    header[name] = { dtype: tensor.dtype, shape: tensor.shape, data_offsets: [at, at + tensor.raw.length] };
    at += tensor.raw.length;
  }
  let json = JSON.stringify(header);
  json += ' '.repeat((8 - (json.length % 8)) % 8);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  writeFileSync(
    file,
    Buffer.concat([length, Buffer.from(json), ...Object.values(tensors).map((tensor) => tensor.raw)]),
  );
}

module.exports = { readTensors, writeTensors };
