// Loads a package of halfconv with onnxruntime-web, and runs its model:
//
//     import { load } from "./halfconv.mjs";
//     const model = await load();
//     const outputs = await model.run({ x: { dtype: "float32", shape: [1, 3], data: new Float32Array(3) } });
//
// WebGPU is used where the browser has a GPU for it; there the FP16 model, if the GPU has the feature `shader-f16`, else the FP32
// model. WebAssembly runs the FP32 model: its kernels compute in FP32.

import { Package, Problem } from "./package.mjs";
import { fromTensors, toTensors } from "./samples.mjs";

export { Problem };

/** What a browser is asked to do -> the file of onnxruntime-web that can. */
const RUNTIMES = { webgpu: "ort.webgpu.min.mjs", wasm: "ort.wasm.min.mjs" };
const BACKENDS = ["auto", "webgpu", "wasm"];
const PRECISIONS = ["auto", "half", "fp32"];
/** ONNX Runtime's levels of optimisation, in the words of onnxruntime-web. */
const LEVELS = { ORT_ENABLE_ALL: "all", ORT_ENABLE_EXTENDED: "extended", ORT_ENABLE_BASIC: "basic", ORT_DISABLE_ALL: "disabled" };
const MOST_THREADS = 4;

/**
 * Choose where a model runs, and in which precision.
 *
 * @param {string} backend "webgpu", "wasm", or "auto".
 * @param {string} precision "half", "fp32", or "auto".
 * @param {?{half: boolean, software: boolean}} gpu What `findGpu` returned.
 * @returns {{backend: string, precision: string, why: string}}
 */
export function choose(backend, precision, gpu) {
  if (!BACKENDS.includes(backend)) throw new Problem(`there is no backend '${backend}'`, BACKENDS.join(", "));
  if (!PRECISIONS.includes(precision)) throw new Problem(`there is no precision '${precision}'`, PRECISIONS.join(", "));
  const chosen = backend !== "auto" ? backend : gpu && !gpu.software ? "webgpu" : "wasm";
  if (chosen === "webgpu" && !gpu) throw new Problem("this browser gives no WebGPU adapter", "backend wasm, or another browser");
  if (chosen === "webgpu" && precision === "half" && !gpu.half) {
    throw new Problem("this GPU has no shader-f16, which the FP16 model needs", "precision fp32");
  }
  const half = precision === "half" || (precision === "auto" && chosen === "webgpu" && gpu.half);
  const reasons = {
    webgpu: gpu?.half ? "the GPU computes in FP16" : "the GPU has no shader-f16, so the model is FP32",
    wasm: backend === "wasm" ? "WebAssembly was asked for" : gpu ? "WebGPU is only emulated here" : "there is no WebGPU",
  };
  return { backend: chosen, precision: half ? "half" : "fp32", why: reasons[chosen] };
}

/** Ask the browser for a GPU: null, or whether it computes in FP16 and whether it is emulated. */
export async function findGpu() {
  const adapter = await globalThis.navigator?.gpu?.requestAdapter?.({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) return null;
  return { half: adapter.features.has("shader-f16"), software: Boolean(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter) };
}

/** A model, ready to run. */
class Model {
  #ort;
  #session;

  constructor(ort, session, facts) {
    this.#ort = ort;
    this.#session = session;
    Object.assign(this, facts);
  }

  /**
   * Run the model.
   *
   * @param {Object<string, {dtype: string, shape: Array<number>, data: object}>} inputs By name. FP16 elements are given as bits.
   * @returns {Promise<Object<string, {dtype: string, shape: Array<number>, data: object}>>} Outputs by name.
   */
  async run(inputs) {
    for (const { name, dtype } of this.inputs) {
      if (!(name in inputs)) throw new Problem(`the input '${name}' is missing`, `a tensor of ${dtype}`);
      if (inputs[name].dtype !== dtype) throw new Problem(`the input '${name}' is ${inputs[name].dtype}`, dtype);
    }
    const feeds = toTensors(this.#ort, Object.fromEntries(this.inputs.map(({ name }) => [name, inputs[name]])));
    const results = await this.#session.run(feeds, this.outputs);
    const found = fromTensors(results);
    for (const tensor of Object.values(feeds)) tensor.dispose();
    return found;
  }

  /** Free the model's memory. */
  async release() {
    await this.#session.release();
  }
}

/**
 * Load the model of a package.
 *
 * @param {object} [options]
 * @param {URL|string} [options.base] The package's folder; that of this file by default.
 * @param {string} [options.backend] "auto", "webgpu" or "wasm".
 * @param {string} [options.precision] "auto", "half" or "fp32".
 * @param {URL|string} [options.runtime] The folder of onnxruntime-web's files.
 * @param {(done: number, total: number, path: string) => void} [options.onProgress] Told of the bytes that have come of a file.
 * @param {Package} [options.from] The package, if it is open already.
 * @returns {Promise<Model>} The model, with `backend`, `precision`, `why`, `inputs` and `outputs`.
 */
export async function load(options = {}) {
  const base = new URL(options.base ?? "./", import.meta.url);
  const from = options.from ?? (await Package.open(base, options.onProgress));
  const content = JSON.parse(new TextDecoder().decode(await from.bytes("web.json")));
  const wanted = [options.backend ?? "auto", options.precision ?? "auto"];
  const gpu = wanted[0] === "wasm" ? null : await findGpu();
  const chosen = choose(...wanted, gpu);
  const runtime = new URL(options.runtime ?? "./node_modules/onnxruntime-web/dist/", base);
  try {
    return await open(runtime, from, content, chosen);
  } catch (error) {
    if (wanted[0] !== "auto" || chosen.backend === "wasm" || !(error instanceof Unloadable)) throw error;
    const why = `WebGPU does not take this model: ${error.reason}`;
    return open(runtime, from, content, { ...choose("wasm", wanted[1], null), why });
  }
}

/** What onnxruntime-web says of a model that it does not load. */
class Unloadable extends Problem {
  constructor(version, file, reason) {
    const advice = "another version of onnxruntime-web, or convert the model again with the operators it has";
    super(`onnxruntime-web ${version} cannot load ${file}: ${reason}`, advice);
    this.reason = reason;
  }
}

/** Download a model, and let onnxruntime-web load it. */
async function open(runtime, from, content, chosen) {
  const ort = await start(runtime, chosen.backend, content);
  const version = ort.env.versions.web;
  const entry = content.models[chosen.precision];
  const bytes = await from.bytes(entry.file);
  const externalData = [];
  for (const { path, file } of entry.data) externalData.push({ path, data: await from.bytes(file) });
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, {
      executionProviders: [chosen.backend], externalData, graphOptimizationLevel: LEVELS[entry.level] ?? "all", logSeverityLevel: 3,
    });
  } catch (error) {
    throw new Unloadable(version, entry.file, sentence(error));
  }
  const { inputs, outputs } = content;
  return new Model(ort, session, { ...chosen, inputs, outputs, runtime: version, threads: ort.env.wasm.numThreads });
}

/** Import onnxruntime-web, and refuse one that is too old. */
async function start(runtime, backend, content) {
  const file = new URL(RUNTIMES[backend], runtime);
  let ort;
  try {
    ort = await import(file);
  } catch (error) {
    throw new Problem(`onnxruntime-web is not at ${file}: ${sentence(error)}`, "npm install --ignore-scripts in the package's folder");
  }
  const found = ort.env.versions.web ?? "of an unknown version";
  if (older(found, content.min_ort)) {
    const words = `onnxruntime-web ${found} is too old for this package, which needs ${content.min_ort}`;
    throw new Problem(words, `npm install onnxruntime-web@${content.runtime}`);
  }
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = runtime.href;
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency ?? 1) : 1;
  return ort;
}

function older(found, least) {
  const [a, b] = [found, least].map((version) => version.split(".").map((part) => parseInt(part, 10)));
  for (let k = 0; k < b.length; k += 1) {
    if ((a[k] || 0) !== b[k]) return (a[k] || 0) < b[k];
  }
  return false;
}

function sentence(error) {
  return String(error?.message ?? error).replace(/\s+/g, " ").trim().slice(0, 500);
}
