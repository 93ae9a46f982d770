// The model of this package. `const model = await loadModel(); const { NAME } = await model.run({ INPUT: tensor });`

import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

import { Unusable, readManifest, requireVersion } from "./manifest.mjs";

export const FOLDER = dirname(fileURLToPath(import.meta.url));

/** ONNX Runtime's module and version. */
export async function loadRuntime() {
  try {
    const ort = await import("onnxruntime-node");
    const { version } = createRequire(import.meta.url)("onnxruntime-node/package.json");
    return { ort: ort.default ?? ort, version };
  } catch (error) {
    throw new Unusable(`onnxruntime-node cannot be loaded: ${String(error.message).split("\n")[0]}; try: npm install`);
  }
}

/** Levels of optimisation, as profiles and as onnxruntime-node call them. */
const LEVELS = { ORT_ENABLE_ALL: "all", ORT_ENABLE_EXTENDED: "extended", ORT_ENABLE_BASIC: "basic", ORT_DISABLE_ALL: "disabled" };

/**
 * Load the model, as its run profile says.
 * @param {Object} [options] Options of onnxruntime-node's session, beside those.
 * @returns {Promise<{session: Object, Tensor: Function, manifest: Object, run: Function}>}
 */
export async function loadModel(options = {}) {
  const manifest = await readManifest(FOLDER);
  const { ort, version } = await loadRuntime();
  requireVersion(manifest, version);
  const graphOptimizationLevel = LEVELS[manifest.profile?.graph_optimization] ?? "all";
  const session = await ort.InferenceSession.create(join(FOLDER, "model", manifest.model), { graphOptimizationLevel, ...options });
  return { session, Tensor: ort.Tensor, manifest, ort, run: (feeds, outputs) => session.run(feeds, outputs) };
}

/** Load a file of the recorded samples. */
export async function loadSample(file) {
  const bytes = await readFile(join(FOLDER, "samples", file));
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
}
