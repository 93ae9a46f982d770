// Recorded samples, and how far a model's outputs are from the recorded ones: for Node.js and browsers, without dependencies.
// The measures are those of `halfconv validate`.

/** Element type -> how JavaScript holds it; float16 is held as its bits, as ONNX Runtime does. */
const ARRAYS = {
  float16: Uint16Array, float32: Float32Array, float64: Float64Array, int8: Int8Array, int16: Int16Array, int32: Int32Array,
  int64: BigInt64Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array, bool: Uint8Array,
};
/** Measures whose bound is a lower one. */
const HIGHER_IS_BETTER = new Set(["cosine", "sqnr_db", "argmax_agreement", "agreement"]);
/** Half format -> mantissa bits, exponents of the smallest and the largest normal numbers. */
const FORMATS = { fp16: [10, -14, 15], bf16: [7, -126, 127] };
/** From this magnitude on, an element that becomes exactly 0 counts as zeroed. */
const ZEROED_FROM = 6.1e-5;

/**
 * Read the samples.
 * @param {(file: string) => Promise<ArrayBuffer>} load Gives a file of the folder `samples`.
 * @returns {Promise<{kind: string, to: string, tolerance: Object, samples: Object[]}>} Tensors are {dtype, shape, data}, by name.
 */
export async function readSamples(load) {
  const content = JSON.parse(new TextDecoder().decode(await load("samples.json")));
  if (content.schema_version !== 1) throw new Error(`samples.json has version ${content.schema_version}, and 1 is known`);
  const samples = [];
  for (const entry of content.samples) {
    samples.push({ name: entry.name, inputs: await readSide(entry.inputs, load), outputs: await readSide(entry.outputs, load) });
  }
  return { kind: content.kind, to: content.to, tolerance: content.tolerance, samples };
}

async function readSide(entries, load) {
  const found = new Map();
  for (const { name, dtype, shape, file } of entries) {
    if (!/^[A-Za-z0-9_][A-Za-z0-9._-]*$/.test(file) || !(dtype in ARRAYS)) throw new Error(`samples.json: '${name}' is damaged`);
    const bytes = await load(file);
    const needed = shape.reduce((product, size) => product * size, 1) * ARRAYS[dtype].BYTES_PER_ELEMENT;
    if (bytes.byteLength !== needed) throw new Error(`${file} holds ${bytes.byteLength} bytes, and '${name}' needs ${needed}`);
    found.set(name, { dtype, shape, data: new ARRAYS[dtype](bytes) });
  }
  return Object.fromEntries(found);
}

/**
 * Judge what a model gave for every sample.
 * @param {Object} recording What `readSamples` returned.
 * @param {Object[]} given For each sample: output name -> {dtype, shape, data}.
 * @param {Object} [tolerance] Bounds in place of the recorded ones, for a model that is nearer to FP32.
 * @returns {{passed: boolean, outputs: {name: string, measures: Object, failures: string[]}[]}}
 */
export function judge(recording, given, tolerance = recording.tolerance) {
  const outputs = Object.keys(recording.samples[0].outputs).map((name) => {
    const pairs = recording.samples.map((sample, place) => [sample.name, sample.outputs[name], given[place][name]]);
    const changed = pairs.map(([label, r, c]) => change(label, r, c)).find(Boolean);
    const measures = changed ? {} : measure(pairs, recording.to);
    const failures = changed ? [changed] : [];
    for (const [metric, bound] of Object.entries(bounds(tolerance, name))) {
      const value = measures[metric];
      if (value === null || value === undefined) continue;
      if (!(HIGHER_IS_BETTER.has(metric) ? value >= bound : value <= bound)) failures.push(`${metric} ${value} against ${bound}`);
    }
    return { name, measures, failures };
  });
  return { passed: outputs.every((output) => output.failures.length === 0), outputs };
}

/** Say how a result differs in kind; "" if it does not. */
function change(label, r, c) {
  if (c === undefined) return `${label}: the model gives no such output`;
  if (c.shape.length !== r.shape.length || c.shape.some((size, axis) => Number(size) !== r.shape[axis])) {
    return `${label}: shape [${r.shape}] became [${c.shape}]`;
  }
  return r.dtype.startsWith("float") === c.dtype.startsWith("float") ? "" : `${label}: type ${r.dtype} became ${c.dtype}`;
}

function bounds(tolerance, output) {
  const found = {};
  for (const [key, bound] of Object.entries(tolerance)) if (!key.includes("@")) found[key] = bound;
  for (const [key, bound] of Object.entries(tolerance)) {
    const at = key.indexOf("@");
    if (at > 0 && key.slice(at + 1) === output) found[key.slice(0, at)] = bound;
  }
  return found;
}

/** Measure one output over all samples; r is the reference, c the candidate, as `halfconv validate` defines them. */
function measure(pairs, to) {
  if (!pairs[0][1].dtype.startsWith("float")) {
    let compared = 0, equal = 0;
    for (const [, r, c] of pairs) {
      compared += r.data.length;
      for (let i = 0; i < r.data.length; i++) if (r.data[i] === c.data[i]) equal++;
    }
    return { agreement: compared ? equal / compared : null, new_nan: 0, new_inf: 0, mismatched: 0 };
  }
  let rr = 0, cc = 0, rc = 0, dd = 0, maxAbs = 0, absmax = 0, finite = 0, nan = 0, inf = 0, mismatched = 0, visible = 0, zeroed = 0;
  let rows = 0, same = 0;
  const kept = [], ulps = [], [bits, smallest, largest] = FORMATS[to];
  for (const [, reference, candidate] of pairs) {
    const r = numbers(reference), c = numbers(candidate), width = reference.shape.at(-1) ?? 0;
    for (let row = 0; width >= 2 && row < r.length; row += width) {
      const at = argmax(r, row, width), other = argmax(c, row, width);
      if (Number.isNaN(r[row + at])) continue;
      rows++;
      if (at === other && !Number.isNaN(c[row + other])) same++;
    }
    for (let i = 0; i < r.length; i++) {
      if (!Number.isFinite(r[i])) {
        if (!Object.is(r[i], c[i])) mismatched++;
        continue;
      }
      finite++;
      const size = Math.abs(r[i]), error = Math.abs(c[i] - r[i]);
      absmax = Math.max(absmax, size);
      if (size >= ZEROED_FROM) visible++;
      if (!Number.isFinite(c[i])) {
        if (Number.isNaN(c[i])) nan++;
        else inf++;
        continue;
      }
      if (size >= ZEROED_FROM && c[i] === 0) zeroed++;
      rr += r[i] * r[i];
      cc += c[i] * c[i];
      rc += r[i] * c[i];
      dd += error * error;
      maxAbs = Math.max(maxAbs, error);
      kept.push(size, error);
      const exponent = size > 0 ? Math.min(Math.max(Math.floor(Math.log2(size)), smallest), largest) : smallest;
      ulps.push(error * 2 ** (bits - exponent));
    }
  }
  const argmaxAgreement = rows ? same / rows : null;
  if (!finite) return { argmax_agreement: argmaxAgreement, new_nan: 0, new_inf: 0, mismatched };
  const lost = nan + inf > 0;
  let maxRel = 0;
  for (let i = 0; i < kept.length; i += 2) if (absmax > 0) maxRel = Math.max(maxRel, kept[i + 1] / Math.max(kept[i], 1e-3 * absmax));
  const relL2 = lost ? Infinity : rr === 0 ? maxAbs : Math.sqrt(dd / rr);
  ulps.sort((a, b) => a - b);
  return {
    rel_l2: relL2,
    max_abs: lost ? Infinity : maxAbs,
    max_rel: lost ? Infinity : absmax > 0 ? maxRel : maxAbs,
    cosine: lost ? 0 : rr === 0 || cc === 0 ? Number(rr === cc) : Math.max(-1, Math.min(1, rc / Math.sqrt(rr * cc))),
    sqnr_db: relL2 === 0 ? Infinity : -20 * Math.log10(relL2),
    ulp_p99: lost && nan + inf > finite * 0.01 ? Infinity : ulps[Math.max(0, Math.ceil(0.99 * finite) - 1)] ?? Infinity,
    argmax_agreement: argmaxAgreement,
    new_nan: nan,
    new_inf: inf,
    mismatched,
    zeroed: visible ? zeroed / visible : null,
  };
}

/** The place of the largest of a row; of a row with NaN, the first NaN. */
function argmax(values, start, width) {
  let best = 0;
  for (let i = 0; i < width; i++) {
    if (Number.isNaN(values[start + i])) return i;
    if (values[start + i] > values[start + best]) best = i;
  }
  return best;
}

/** A tensor's numbers; float16 is decoded. */
function numbers({ dtype, data }) {
  if (dtype !== "float16" || !(data instanceof Uint16Array)) return data;
  return Float64Array.from(data, (half) => {
    const exponent = (half >> 10) & 31, mantissa = half & 1023, sign = half >> 15 ? -1 : 1;
    if (exponent === 31) return mantissa ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + mantissa / 1024) : 2 ** -14 * (mantissa / 1024));
  });
}

/**
 * A sample's inputs as ONNX Runtime's tensors.
 * @param {Object} ort The module `onnxruntime-node` or `onnxruntime-web`.
 * @param {Object} tensors Name -> {dtype, shape, data}.
 */
export function toTensors(ort, tensors) {
  return Object.fromEntries(Object.entries(tensors).map(([name, { dtype, shape, data }]) => [name, new ort.Tensor(dtype, data, shape)]));
}

/** A result of ONNX Runtime's as `judge` takes it. */
export function fromTensors(results) {
  return Object.fromEntries(Object.entries(results).map(([name, tensor]) => [name, { dtype: tensor.type, shape: [...tensor.dims], data: tensor.data }]));
}
