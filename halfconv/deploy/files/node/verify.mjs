// Prove this package here: its files are whole, and the model gives the recorded outputs within the recorded tolerance.
// Exit code 0: it does. 1: it does not. 2: a file or the runtime cannot be used.

import { Unusable, checkFiles, requireVersion } from "./manifest.mjs";
import { FOLDER, loadModel, loadRuntime, loadSample } from "./model.mjs";
import { fromTensors, judge, readSamples, toTensors } from "./samples.mjs";

async function verify() {
  const manifest = await checkFiles(FOLDER);
  const { version } = await loadRuntime();
  requireVersion(manifest, version);
  const recording = await readSamples(loadSample);
  let model;
  try {
    model = await loadModel();
  } catch (error) {
    throw new Unusable(`${manifest.model} does not load in onnxruntime-node ${version}: ${error.message}; try: npm install`);
  }
  const given = [];
  for (const sample of recording.samples) given.push(fromTensors(await model.run(toTensors(model.ort, sample.inputs))));
  const found = judge(recording, given);
  const count = recording.samples.length;
  console.log(`${manifest.model} on onnxruntime-node ${version}: ${found.passed ? "passed" : "FAILED"} on ${count} ${recording.kind} samples`);
  for (const { name, measures, failures } of found.outputs) {
    const figure = measures.rel_l2 === undefined ? `agreement ${measures.agreement}` : `rel_l2 ${measures.rel_l2.toPrecision(3)}`;
    console.log(`  ${name}: ${failures.length ? `FAILED: ${failures.join("; ")}` : figure}`);
  }
  console.log(found.passed ? "verify: passed" : "verify: FAILED");
  return found.passed ? 0 : 1;
}

try {
  process.exitCode = await verify();
} catch (error) {
  console.error(`verify: ${String(error.message).replace(/\s+/g, " ")}`);
  process.exitCode = 2;
}
