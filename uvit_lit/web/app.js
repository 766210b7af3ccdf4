// The page: its controls, the list of pictures that they ask for, and the pictures.
import {
  COUNT, KNOBS, differs, inputs, meant, python, readAddress, resetKnobs, skipChoices, startOf,
  writeAddress,
} from "./settings.js";

const $ = (id) => document.getElementById(id);
const PREVIEW = 5; // solver steps of the preview
const KEPT = 200; // grids of eight that stay in memory

let card; // what the export says of the model
let settings; // what the controls say
let worker;
let changed = 0; // when the settings changed last
let times = {};
const grids = new Map(); // by key: the pixels of eight pictures

// ---- what to draw ---------------------------------------------------------------------------

function job(numbers, steps) {
  const { seed, cfg } = settings;
  const index = card.class_names.indexOf(settings.class);
  const classes = card.class_names.length;
  const seeds = Array.from({ length: COUNT }, (_, i) => seed + i);
  const labels = seeds.map((_, i) => (index < 0 ? i % (classes || 1) : index));
  const made = { ...numbers, steps, cfg, seeds, labels };
  return { ...made, key: JSON.stringify(made) };
}

/** First looks, then finals; the pictures as set before those as trained. */
function wantedJobs() {
  const { steps } = settings;
  const both = [settings, resetKnobs(settings)].map((knobs) => ({
    preview: job(inputs(card, knobs), PREVIEW),
    final: job(inputs(card, knobs), steps),
  }));
  return { set: both[0], trained: both[1] };
}

function update() {
  changed = performance.now();
  times = {};
  history.replaceState(null, "", `#${writeAddress(settings)}`);
  showControls();
  ask();
}

function ask() {
  const { set, trained } = wantedJobs();
  const pending = [];
  for (const { preview, final } of [set, trained]) {
    if (!grids.has(final.key) && settings.steps > PREVIEW) pending.push(preview);
  }
  pending.push(set.final, trained.final);
  const jobs = pending.filter(
    ({ key }, i) => !grids.has(key) && pending.findIndex((other) => other.key === key) === i,
  );
  worker.postMessage({ jobs });
  showPictures();
  if (!jobs.length) showDone();
}

// ---- what is shown --------------------------------------------------------------------------

function buildControls() {
  const names = {
    inner: "the innermost",
    all: "all of them",
    outer: "the outermost",
    split: "s inner, b all",
  };
  const choices = Object.keys(skipChoices(card)).map((key) => [key, names[key] ?? `numbers ${key}`]);
  const option = ([value, text]) => new Option(text, value);
  $("skips").replaceChildren(...[...choices, ["each", "each by itself"]].map(option));
  const classes = card.class_names.map((name) => [name, name]);
  $("class").replaceChildren(...[["", "all in turn"], ...classes].map(option));
  $("class-row").hidden = !classes.length;
  $("cfg-row").hidden = !card.can_guide;
  buildKnobs();
  $("pictures").replaceChildren(
    ...Array.from({ length: COUNT }, () => {
      const figure = document.createElement("figure");
      const [, height, width] = card.image_shape;
      const canvases = ["trained", "set"].map((name) => {
        const canvas = Object.assign(document.createElement("canvas"), { width, height });
        canvas.className = name;
        canvas.setAttribute("role", "img");
        return canvas;
      });
      figure.append(...canvases, document.createElement("figcaption"));
      return figure;
    }),
  );
  const { name, training_steps: steps, data, licence } = card;
  $("model").textContent = [
    `Model ${name}`,
    data && `trained on ${data}`,
    steps && `${steps.toLocaleString("en")} training steps`,
    licence && `licence ${licence}`,
    "drawn on this device: the page sends nothing anywhere",
  ].filter(Boolean).join(" · ");
}

/** Sliders of s, b and the cutoff: once, or for each long skip. */
function buildKnobs() {
  const parts = settings.s.map((_, i) => {
    const sliders = Object.entries(KNOBS).map(([knob, { min, max, step, text }]) => {
      const label = document.createElement("label");
      label.className = "slider";
      const input = Object.assign(document.createElement("input"), { type: "range", min, max, step });
      input.dataset.knob = knob;
      input.dataset.index = i;
      const hint = Object.assign(document.createElement("small"), { textContent: text });
      const name = document.createElement("span");
      name.append(Object.assign(document.createElement("b"), { textContent: knob }), " ", hint);
      label.append(name, document.createElement("output"), input);
      return label;
    });
    if (settings.s.length === 1) return sliders;
    const last = settings.s.length - 1;
    const which = i === 0 ? " (outermost)" : i === last ? " (innermost)" : "";
    const title = Object.assign(document.createElement("h3"), { textContent: `Skip ${i}${which}` });
    return [title, ...sliders];
  });
  $("knobs").replaceChildren(...parts.flat());
}

function showControls() {
  for (const id of ["skips", "class", "seed", "cfg", "steps"]) {
    if (document.activeElement !== $(id) || id !== "seed") $(id).value = settings[id];
  }
  for (const input of document.querySelectorAll("#knobs input")) {
    const { knob, index } = input.dataset;
    input.value = settings[knob][index] ?? startOf(card, settings, knob, index);
  }
  for (const input of document.querySelectorAll(".slider input")) {
    input.parentElement.querySelector("output").value = Number(input.value).toString();
    const { knob, index } = input.dataset;
    const marked = knob && knob !== "cutoff" && differs(card, settings, knob, index);
    input.parentElement.classList.toggle("changed", Boolean(marked));
  }
  $("python").textContent = python(card, settings);
}

/** Draw the best that is known of each grid. */
function showPictures(held = false) {
  const { set, trained } = wantedJobs();
  const { labels, seeds } = set.final;
  for (const [name, { preview, final }] of Object.entries({ set: held ? trained : set, trained })) {
    const grid = grids.get(final.key) ?? grids.get(preview.key);
    document.querySelectorAll(`canvas.${name}`).forEach((canvas, i) => {
      const label = card.class_names[labels[i]];
      const what = name === "trained" ? "as trained" : "with your settings";
      canvas.setAttribute("aria-label", [label, `seed ${seeds[i]}`, what].filter(Boolean).join(", "));
      canvas.parentElement.lastChild.textContent = label ?? `seed ${seeds[i]}`;
      if (!grid) return; // the last pictures stay until there are new ones
      const [, height, width] = card.image_shape;
      canvas.getContext("2d").putImageData(new ImageData(grid[i], width, height), 0, 0);
    });
  }
  document.body.dataset.drawn = [set, trained].every(({ final }) => grids.has(final.key)) ? "final"
    : grids.has(set.preview.key) || grids.has(set.final.key) ? "preview" : "";
}

function showDone() {
  $("progress").value = 1;
  const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;
  const parts = [
    times.preview && `preview after ${seconds(times.preview)}`,
    times.final && `final pictures after ${seconds(times.final)}`,
  ].filter(Boolean);
  $("status").textContent = parts.length ? `Done: ${parts.join(", ")}.` : "Done.";
}

function alertWith(text) {
  $("alert").textContent = text;
  $("alert").hidden = !text;
}

// ---- the worker -----------------------------------------------------------------------------

function startWorker(webgpu) {
  worker?.terminate();
  // without the two headers of service.js a browser shares no memory between threads
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
  $("device").textContent = webgpu
    ? "The graphics card draws."
    : `The processor draws, with ${threads} thread${threads > 1 ? "s" : ""}.`;
  worker = new Worker("worker.js", { type: "module" });
  worker.onerror = () => failed("The page cannot start its worker: this browser is too old.", webgpu);
  worker.onmessage = ({ data }) => receive(data, webgpu);
  worker.postMessage({ load: { webgpu, threads } });
  $("status").textContent = "Loading the model …";
}

function receive(data, webgpu) {
  if (data.failed) return failed(data.failed, webgpu);
  if (data.loaded) {
    $("progress").value = data.loaded;
  } else if (data.ready) {
    document.body.dataset.difference = data.difference;
    ask();
  } else if (data.step) {
    const { set, trained } = wantedJobs();
    const at = [set.preview, trained.preview, set.final, trained.final].findIndex(
      ({ key }) => key === data.key,
    );
    if (at < 0) return;
    const steps = at < 2 ? PREVIEW : settings.steps;
    $("progress").value = data.step / steps;
    const what = at % 2 ? "as trained" : "with your settings";
    const stage = at < 2 ? "preview" : "final pictures";
    $("status").textContent = `Drawing ${what}, ${stage}: step ${data.step} of ${steps}`;
  } else {
    grids.set(data.key, data.pixels);
    if (grids.size > KEPT) grids.delete(grids.keys().next().value);
    const { set, trained } = wantedJobs();
    for (const stage of ["preview", "final"]) {
      if (data.key === set[stage].key) times[stage] ??= performance.now() - changed;
    }
    showPictures();
    if ([set, trained].every(({ final }) => grids.has(final.key))) showDone();
  }
}

function failed(text, webgpu) {
  if (!webgpu) {
    $("status").textContent = "";
    return alertWith(text);
  }
  alertWith(`${text} The processor draws instead.`);
  $("webgpu").checked = false;
  startWorker(false);
}

// ---- start ----------------------------------------------------------------------------------

/** A module of one function that uses a SIMD instruction. */
const SIMD = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15,
  253, 98, 11,
);

/** Come back under the service worker once, which gives threads and works offline. */
async function isolate() {
  if (self.crossOriginIsolated || !navigator.serviceWorker) return;
  try {
    await navigator.serviceWorker.register("service.js");
    await navigator.serviceWorker.ready;
  } catch {
    return; // one thread then
  }
  if (sessionStorage.isolated) return;
  sessionStorage.isolated = "tried";
  location.reload();
  await new Promise(() => {});
}

function connectControls() {
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("knobs").addEventListener("input", ({ target }) => {
    const { knob, index } = target.dataset;
    settings[knob][index] = meant(card, settings, knob, index, Number(target.value));
    update();
  });
  $("skips").addEventListener("change", ({ target }) => {
    const address = writeAddress({ ...settings, skips: target.value });
    settings = readAddress(card, address); // one value, or one for each
    buildKnobs();
    update();
  });
  $("class").addEventListener("change", ({ target }) => {
    settings.class = target.value;
    update();
  });
  for (const id of ["cfg", "steps", "seed"]) {
    $(id).addEventListener("input", ({ target }) => {
      if (target.value === "" || !target.checkValidity()) return;
      settings[id] = Number(target.value);
      update();
    });
  }
  $("next").addEventListener("click", () => {
    settings.seed = Math.min(settings.seed + COUNT, 2 ** 32 - COUNT);
    update();
  });
  $("reset").addEventListener("click", () => {
    settings = resetKnobs(settings);
    update();
  });
  const hold = (held) => () => {
    $("hold").classList.toggle("held", held);
    showPictures(held);
  };
  for (const type of ["pointerdown", "keydown"]) $("hold").addEventListener(type, hold(true));
  for (const type of ["pointerup", "pointerleave", "pointercancel", "keyup", "blur"]) {
    $("hold").addEventListener(type, hold(false));
  }
  $("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText($("python").textContent);
    $("copy").textContent = "Copied";
    setTimeout(() => ($("copy").textContent = "Copy"), 1500);
  });
  $("webgpu").disabled = !navigator.gpu;
  if (!navigator.gpu) $("webgpu").parentElement.append(" (not in this browser)");
  $("webgpu").addEventListener("change", ({ target }) => {
    grids.clear();
    alertWith("");
    changed = performance.now();
    startWorker(target.checked);
  });
  window.addEventListener("hashchange", () => {
    settings = readAddress(card, location.hash.slice(1));
    buildKnobs();
    update();
  });
}

async function start() {
  if (!self.WebAssembly || !WebAssembly.validate(SIMD)) {
    return alertWith("This browser has no WebAssembly SIMD, which the model needs: use a newer one.");
  }
  await isolate();
  const response = await fetch("model.json");
  if (!response.ok) return alertWith("The file model.json is missing beside the page.");
  card = await response.json();
  alertWith("");
  document.querySelector("main").hidden = false;
  settings = readAddress(card, location.hash.slice(1));
  buildControls();
  connectControls();
  changed = performance.now();
  showControls();
  showPictures();
  startWorker(false);
}

start();
