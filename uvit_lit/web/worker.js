// The network in a thread of its own: loads the model, tests it, draws what the page asks for.
import { guide, noiseOf, randn, solve, toPixels } from "./sampler.js";

let ort, session, card;
let jobs = []; // the first is the one to draw
let drawing = false;

self.onmessage = ({ data }) => {
  if (data.load) {
    load(data.load).catch((error) => self.postMessage({ failed: `${error.message ?? error}` }));
  } else {
    jobs = data.jobs;
    if (!drawing) drawAll();
  }
};

async function load({ webgpu, threads }) {
  card = await (await download("model.json")).json();
  ort = await import(webgpu ? "./ort/ort.webgpu.min.mjs" : "./ort/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("ort/", import.meta.url).href;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const bytes = await downloadModel();
  const again = "Export the page again, or copy model.onnx again.";
  if (bytes.length !== card.bytes) {
    throw Error(`The model file is broken: it has ${bytes.length} of ${card.bytes} bytes. ${again}`);
  }
  try {
    const executionProviders = [webgpu ? "webgpu" : "wasm"];
    session = await ort.InferenceSession.create(bytes, { executionProviders });
  } catch (error) {
    if (webgpu) throw Error(`WebGPU cannot run the model: ${error.message}`);
    throw Error(`The model file is broken. ${again}`);
  }
  const difference = await selfTest();
  if (!(difference <= card.test.tolerance)) {
    const where = webgpu ? "with WebGPU" : "in this browser";
    throw Error(`The model gives other numbers ${where} than it should. ${webgpu ? "" : again}`);
  }
  self.postMessage({ ready: card, difference });
}

async function download(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw Error(`The file ${name} is missing beside the page.`);
  return response;
}

async function downloadModel() {
  const parts = [];
  let loaded = 0;
  const reader = (await download("model.onnx")).body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    loaded += part.value.length;
    self.postMessage({ loaded: loaded / card.bytes });
  }
  const bytes = new Uint8Array(loaded);
  let position = 0;
  for (const part of parts) {
    bytes.set(part, position);
    position += part.length;
  }
  return bytes;
}

/** Largest difference to the numbers stored at the export, of noise that is drawn here. */
async function selfTest() {
  const { seed, t, labels, s, b, cutoff, x0, every } = card.test;
  const one = randn(seed, size());
  const x = new Float32Array(2 * one.length);
  x.set(one);
  x.set(one, one.length);
  const got = await run(x, t, labels, { s, b, cutoff });
  return x0.reduce((most, value, i) => {
    const difference = Math.abs(got[i * every] - value);
    return difference <= most ? most : difference; // not a number is the most
  }, 0);
}

const size = () => card.image_shape.reduce((a, b) => a * b);

/** Clean images of a batch at time t in [0, 1]. */
async function run(x, t, labels, numbers) {
  const batch = x.length / size();
  const feeds = {
    x_t: new ort.Tensor("float32", x, [batch, ...card.image_shape]),
    t: new ort.Tensor("float32", new Float32Array(batch).fill(t), [batch]),
  };
  if (card.class_names.length) {
    feeds.label = new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [batch]);
  }
  for (const name of ["s", "b", "cutoff"]) {
    feeds[name] = new ort.Tensor("float32", Float32Array.from(numbers[name]), [numbers[name].length]);
  }
  return (await session.run(feeds)).x0.data;
}

async function drawAll() {
  drawing = true;
  try {
    while (jobs.length) await draw(jobs[0]);
  } catch (error) {
    jobs = [];
    self.postMessage({ failed: `The pictures could not be drawn: ${error.message ?? error}` });
  }
  drawing = false;
}

async function draw(job) {
  const { seeds, labels, cfg, steps } = job;
  const none = labels.map(() => card.class_names.length);
  const denoise = async (x, t) => {
    if (cfg === 1) return run(x, t, labels, job);
    const both = new Float32Array(2 * x.length);
    both.set(x);
    both.set(x, x.length);
    return guide(await run(both, t, [...labels, ...none], job), cfg);
  };
  const afterStep = async (step) => {
    self.postMessage({ key: job.key, step });
    await new Promise((resume) => setTimeout(resume)); // lets a new list of jobs in
    return jobs[0]?.key === job.key;
  };
  const images = await solve(card, noiseOf(seeds, size()), steps, denoise, afterStep);
  if (images === null) return; // something else is wanted now
  self.postMessage({ key: job.key, pixels: toPixels(images, card.image_shape) });
  jobs = jobs.filter(({ key }) => key !== job.key);
}
