// What the controls of the page mean, for the model that a card describes. Needs no browser: node
// imports it too. A knob is null where it is as trained, which every long skip is in its own way.

export const COUNT = 8; // pictures
export const KNOBS = {
  s: { min: 0, max: 1.5, step: 0.05, text: "low frequencies of the skip" },
  b: { min: 0.5, max: 2, step: 0.05, text: "backbone features" },
  cutoff: { min: 0.05, max: 1.4, step: 0.05, text: "where low ends" },
};

const TRAINED = "trained"; // null, in the address
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** Values of a knob as trained: one for each long skip, outermost first. */
export const asTrained = (card, knob) => card.long_skips.map((skip) => skip[knob]);

/** Choices of long skips by name: the numbers that each knob acts on. */
export function skipChoices(card) {
  const all = card.long_skips.map((_, i) => i);
  const inner = all.slice(-1);
  const together = (numbers) => ({ s: numbers, cutoff: numbers, b: numbers });
  const choices = {
    inner: together(inner),
    all: together(all),
    outer: together(all.slice(0, 1)),
    split: { s: inner, cutoff: inner, b: all },
  };
  return ownChoice(card, choices) ? choices : { ...choices, [card.skips.s.join(",")]: card.skips };
}

/** Name of the choice that the model makes. */
function ownChoice(card, choices) {
  const same = (numbers) => Object.keys(KNOBS).every((k) => `${numbers[k]}` === `${card.skips[k]}`);
  return Object.keys(choices).find((name) => same(choices[name]));
}

/** Numbers of the long skips that the slider of a knob acts on; `index` is the slider's. */
export function numbersOf(card, settings, knob, index) {
  return settings.skips === "each" ? [index] : skipChoices(card)[settings.skips][knob];
}

/** Where a slider stands as trained: on its grid, near the mean of what it acts on. */
export function startOf(card, settings, knob, index) {
  const { min, max, step } = KNOBS[knob];
  const trained = asTrained(card, knob);
  const values = numbersOf(card, settings, knob, index).map((number) => trained[number]);
  const mean = values.reduce((a, b) => a + b) / values.length;
  return Number(clamp(min + step * Math.round((mean - min) / step), min, max).toFixed(2));
}

/** What a slider sets that somebody has moved: back at its start it is as trained again. */
export const meant = (card, settings, knob, index, value) =>
  value === startOf(card, settings, knob, index) ? null : value;

/** Whether a slider sets something else than the training. */
export function differs(card, settings, knob, index) {
  const [value, trained] = [settings[knob][index], asTrained(card, knob)];
  const numbers = numbersOf(card, settings, knob, index);
  return value !== null && numbers.some((number) => trained[number] !== value);
}

export function startSettings(card) {
  const skips = ownChoice(card, skipChoices(card));
  return { skips, s: [0.5], b: [1.3], cutoff: [null], class: "", cfg: 1, steps: 25, seed: 0 };
}

/** Settings with every knob as trained. */
export const resetKnobs = (settings) => ({
  ...settings,
  ...Object.fromEntries(Object.keys(KNOBS).map((knob) => [knob, settings[knob].map(() => null)])),
});

/** Settings from the part of an address after #; what is missing or wrong is as at the start. */
export function readAddress(card, text) {
  const found = startSettings(card);
  const given = new URLSearchParams(text);
  const skips = given.get("skips");
  if (skips === "each" || Object.hasOwn(skipChoices(card), skips)) found.skips = skips;
  const count = found.skips === "each" ? card.long_skips.length : 1;
  for (const [knob, { min, max }] of Object.entries(KNOBS)) {
    const texts = (given.get(knob) ?? "").split(",");
    const valid = texts.every((text) => text === TRAINED || Number.isFinite(Number(text)));
    const value = (text) => (text === TRAINED ? null : clamp(Number(text), min, max));
    const chosen = given.has(knob) && valid ? texts.map(value) : found[knob];
    found[knob] = Array.from({ length: count }, (_, i) => chosen[i < chosen.length ? i : 0]);
  }
  for (const [name, low, high] of [["cfg", 1, 4], ["steps", 2, 50], ["seed", 0, 2 ** 32 - COUNT]]) {
    const value = Number(given.get(name) ?? NaN);
    if (Number.isFinite(value)) found[name] = clamp(name === "cfg" ? value : Math.round(value), low, high);
  }
  if (!card.can_guide) found.cfg = 1;
  if (card.class_names.includes(given.get("class"))) found.class = given.get("class");
  return found;
}

/** What `readAddress` reads. */
export function writeAddress(settings) {
  const texts = Object.keys(KNOBS).map((knob) => [knob, settings[knob].map((v) => v ?? TRAINED)]);
  const parameters = new URLSearchParams({ ...settings, ...Object.fromEntries(texts) });
  return parameters.toString().replaceAll("%2C", ",");
}

/** Values of a knob: one for each long skip, outermost first. */
function valuesOf(card, settings, knob) {
  const values = asTrained(card, knob);
  settings[knob].forEach((value, index) => {
    if (value === null) return;
    for (const number of numbersOf(card, settings, knob, index)) values[number] = value;
  });
  return values;
}

/** Values of the inputs s, b and cutoff of the network. */
export const inputs = (card, settings) =>
  Object.fromEntries(Object.keys(KNOBS).map((knob) => [knob, valuesOf(card, settings, knob)]));

/** The line of Python that draws the same pictures. */
export function python(card, settings) {
  const { skips, seed, cfg, steps } = settings;
  const several = skips === "each" && card.long_skips.length > 1;
  const given = Object.keys(KNOBS).filter((knob) => settings[knob].some((v) => v !== null));
  const set = given.map((knob) => {
    const value = several ? `[${valuesOf(card, settings, knob).join(", ")}]` : settings[knob][0];
    return `${knob}=${value}`;
  });
  const neutral = asTrained(card, "s").every((s) => s === 1);
  if (neutral && given.includes("cutoff") && !given.includes("s")) set.unshift("s=1"); // no filter
  const more = set.length ? [`skips="${skips === "each" ? "all" : skips}"`, ...set] : [];
  if (settings.class) more.push(`classes=["${settings.class}"]`);
  if (cfg !== 1) more.push(`cfg=${cfg}`);
  return `generate(model, ${[COUNT, `seed=${seed}`, `steps=${steps}`, ...more].join(", ")})`;
}
