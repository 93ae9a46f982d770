// The page of the package: runs the recorded samples, shows the answers and the time, and says whether they are right.
//
// The choices may come with the address, as in `?backend=wasm&precision=fp32`. When the page has ended its work,
// `window.halfconv.state` is "passed", "failed" or "error", and `window.halfconv` holds what it found.

import { load } from "./halfconv.mjs";
import { Package } from "./package.mjs";
import { judge, readSamples } from "./samples.mjs";

const FIRST = 4;
/** Runs that are timed: this many, or as many as fit these milliseconds, but one at least. */
const MOST_RUNS = 9;
const TIMED = 2000;
const byId = (id) => document.getElementById(id);

function say(state, words) {
  byId("status").textContent = words;
  byId("status").dataset.state = state;
}

/** Run every sample; the times are of whole runs, copies in and out included, in milliseconds. */
async function verify(choices) {
  const onProgress = (done, total, path) => {
    byId("progress").value = total ? done / total : 1;
    say("busy", `Downloading ${path}: ${done.toLocaleString("en")} of ${total.toLocaleString("en")} bytes`);
  };
  const from = await Package.open(new URL("./", import.meta.url), onProgress);
  byId("name").textContent = from.manifest.name;
  const recording = await readSamples(async (file) => (await from.bytes(`samples/${file}`)).buffer);
  const begun = performance.now();
  const model = await load({ ...choices, from });
  const loaded = performance.now() - begun;
  try {
    say("busy", "Running");
    const [given, times] = [[], []];
    for (const sample of recording.samples) given.push(await model.run(sample.inputs));
    const clock = performance.now();
    do {
      const start = performance.now();
      await model.run(recording.samples[0].inputs);
      times.push(performance.now() - start);
    } while (times.length < MOST_RUNS && performance.now() - clock < TIMED);
    times.sort((a, b) => a - b);
    const { passed, outputs } = judge(recording, given);
    return {
      state: passed ? "passed" : "failed",
      backend: model.backend, precision: model.precision, why: model.why, runtime: model.runtime, threads: model.threads,
      samples: recording.samples.length, kind: recording.kind, loaded_ms: loaded, p50_ms: times[times.length >> 1], runs: times.length,
      outputs, shown: outputs.map(({ name }) => ({ given: given[0][name], recorded: recording.samples[0].outputs[name] })),
    };
  } finally {
    await model.release();
  }
}

function show({ shown, ...found }) {
  const where = { webgpu: "WebGPU", wasm: `WebAssembly, ${found.threads} thread${found.threads === 1 ? "" : "s"}` }[found.backend];
  const precision = found.precision === "half" ? "FP16" : "FP32";
  byId("facts").textContent =
    `${precision} model on ${where} (${found.why}), onnxruntime-web ${found.runtime}; ${found.samples} ${found.kind} samples; ` +
    `${found.p50_ms.toFixed(1)} ms a run (median of ${found.runs}), loaded in ${(found.loaded_ms / 1000).toFixed(1)} s.`;
  byId("rows").replaceChildren(
    ...found.outputs.map(({ name, measures, failures }, place) => {
      const { given, recorded } = shown[place];
      const row = document.createElement("tr");
      const cells = [
        `${given.dtype}[${given.shape.join(", ")}]`, first(given.data), first(recorded.data), figure(measures.rel_l2),
        figure(measures.max_abs), failures.length ? failures.join("; ") : "passed",
      ];
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      row.append(head, ...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
      return row;
    }),
  );
  byId("answers").hidden = false;
}

function first(data) {
  const shown = Array.from(data.slice(0, FIRST), (value) => (typeof value === "number" ? String(+value.toPrecision(4)) : String(value)));
  return shown.join(", ") + (data.length > FIRST ? ", …" : "");
}

function figure(value) {
  return value === null || value === undefined ? "does not apply" : String(+value.toPrecision(3));
}

async function start(choices) {
  byId("start").disabled = true;
  byId("answers").hidden = true;
  window.halfconv = { state: "busy" };
  try {
    const found = await verify(choices);
    show(found);
    const { shown, ...result } = found;
    const words = result.state === "passed" ? "passed: the answers are within tolerance" : "FAILED: an output is out of tolerance";
    say(result.state, `verify: ${words}`);
    window.halfconv = result;
  } catch (error) {
    const message = String(error?.message ?? error);
    say("error", `verify: ${message}`);
    window.halfconv = { state: "error", message };
  } finally {
    byId("start").disabled = false;
  }
}

const choices = new URLSearchParams(location.search);
for (const id of ["backend", "precision"]) {
  const asked = choices.get(id);
  if (asked !== null && [...byId(id).options].some(({ value }) => value === asked)) byId(id).value = asked;
}
byId("choices").addEventListener("submit", (event) => {
  event.preventDefault();
  start({ backend: byId("backend").value, precision: byId("precision").value });
});
start({ backend: choices.get("backend") ?? "auto", precision: choices.get("precision") ?? "auto" });
