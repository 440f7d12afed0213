// Numbers of 16 bits: bf16 and fp16, as the bits that files hold.

const bits = new Float32Array(1);
const bitsView = new Uint32Array(bits.buffer);

/** fp32 to bf16 bits, to nearest, ties to even. */
export function toBFloat16(values: Float32Array): Uint16Array {
  const out = new Uint16Array(values.length);
  for (let i = 0; i < values.length; i++) {
    bits[0] = values[i];
    const u = bitsView[0];
    // A NaN must not round to infinity.
    out[i] = Number.isNaN(values[i]) ? 0x7fc0 : (u + 0x7fff + ((u >>> 16) & 1)) >>> 16;
  }
  return out;
}

/** fp32 to fp16 bits, to nearest, ties to even; too large becomes infinite. */
export function toFloat16(values: Float32Array): Uint16Array {
  const out = new Uint16Array(values.length);
  for (let i = 0; i < values.length; i++) {
    bits[0] = values[i];
    const u = bitsView[0];
    const sign = (u >>> 16) & 0x8000;
    const magnitude = Math.abs(values[i]);
    if (Number.isNaN(magnitude)) out[i] = sign | 0x7e00;
    else if (magnitude >= 65520) out[i] = sign | 0x7c00;
    else if (magnitude < 2 ** -14) {
      const steps = magnitude * 2 ** 24;
      const low = Math.floor(steps);
      const rest = steps - low;
      out[i] = sign | (low + (rest > 0.5 || (rest === 0.5 && low % 2 === 1) ? 1 : 0));
    } else {
      // Rebias the exponent by 112 and round away 13 bits of the mantissa.
      const rebased = (u & 0x7fffffff) - (112 << 23);
      out[i] = sign | ((rebased + 0xfff + ((rebased >>> 13) & 1)) >>> 13);
    }
  }
  return out;
}

/** bf16 bits to fp32, exactly. */
export function fromBFloat16(halves: Uint16Array): Float32Array {
  const words = new Uint32Array(halves.length);
  for (let i = 0; i < halves.length; i++) words[i] = halves[i] << 16;
  return new Float32Array(words.buffer);
}

/** fp16 bits to fp32, exactly. */
export function fromFloat16(halves: Uint16Array): Float32Array {
  const out = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) {
    const sign = halves[i] & 0x8000 ? -1 : 1;
    const exponent = (halves[i] >>> 10) & 31;
    const mantissa = halves[i] & 1023;
    if (exponent === 31) out[i] = mantissa === 0 ? sign * Infinity : Number.NaN;
    else out[i] = sign * (exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25));
  }
  return out;
}

/** Numbers of a file as bytes of fp32, which hold all of them exactly. */
export function toFloat32(bytes: Uint8Array, dtype: 'F32' | 'F16' | 'BF16'): Uint8Array {
  if (dtype === 'F32') return bytes;
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
  return new Uint8Array((dtype === 'BF16' ? fromBFloat16(halves) : fromFloat16(halves)).buffer);
}
