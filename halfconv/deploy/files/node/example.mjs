// Run the model on the first recorded sample, and say how long it took. Replace the sample by your own data.

import { loadModel, loadSample } from "./model.mjs";
import { readSamples, toTensors } from "./samples.mjs";

const model = await loadModel();
const [sample] = (await readSamples(loadSample)).samples;
const feeds = toTensors(model.ort, sample.inputs);
await model.run(feeds); // the first run also allocates
const begin = performance.now();
const results = await model.run(feeds);
const milliseconds = performance.now() - begin;
for (const [name, tensor] of Object.entries(results)) {
  console.log(`${name}: ${tensor.type}[${tensor.dims}] begins with ${[...tensor.data.slice(0, 4)].map(String).join(", ")}`);
}
console.log(`${milliseconds.toFixed(1)} ms`);
