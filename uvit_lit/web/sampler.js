// Noise and solver, the same as in uvit_lit/sampling.py. Needs no browser: node imports it too.

/** Standard normal numbers of torch's CPU generator: randn of `size`, a multiple of 16, at `seed`.
 *  MT19937, 24 bits a uniform, Box-Muller in blocks of 16. The last bits differ: torch approximates
 *  the logarithm, the sine and the cosine. */
export function randn(seed, size) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) {
    const last = state[i - 1] ^ (state[i - 1] >>> 30);
    state[i] = Math.imul(1812433253, last) + i;
  }
  let position = 624;
  const uniform = () => {
    if (position === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      position = 0;
    }
    let y = state[position++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    y ^= y >>> 18;
    return (y & 0xffffff) / 2 ** 24;
  };
  const numbers = Float32Array.from({ length: size }, uniform);
  for (let start = 0; start < size; start += 16) {
    for (let i = start; i < start + 8; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - numbers[i]));
      const angle = 2 * Math.PI * numbers[i + 8];
      numbers[i] = radius * Math.cos(angle);
      numbers[i + 8] = radius * Math.sin(angle);
    }
  }
  return numbers;
}

/** First noise of a batch, one seed an image, one after the other. */
export function noiseOf(seeds, size) {
  const noise = new Float32Array(seeds.length * size);
  seeds.forEach((seed, i) => noise.set(randn(seed, size), i * size));
  return noise;
}

/** Time in [0, 1] at which sigma / alpha is `ratio`, from the table of log alpha in the card. */
export function timeOf(logAlpha, ratio) {
  const decay = 0.5 * Math.log1p(ratio * ratio);
  const last = logAlpha.length - 1;
  const after = logAlpha.findIndex((value) => -value > decay);
  if (after === 0) return 0;
  if (after < 0) return 1;
  const [low, high] = [-logAlpha[after - 1], -logAlpha[after]];
  return (after - 1 + (decay - low) / (high - low)) / last;
}

/** DPM-Solver++(2M), Lu et al. 2022, with steps that are even in log(sigma / alpha).
 *  `denoise(x, t)` gives the clean images of noisy ones; `afterStep(n)` may stop it with false.
 *  Gives the clean images, or null where it was stopped. */
export async function solve(card, noise, steps, denoise, afterStep = () => true) {
  const [first, last] = card.sigmas.map(Math.log);
  const sigmas = Array.from({ length: steps }, (_, n) =>
    Math.fround(Math.exp(steps > 1 ? first + ((last - first) * n) / (steps - 1) : first)),
  );
  const times = sigmas.map((sigma) => timeOf(card.log_alpha, sigma));
  let x = Float32Array.from(noise);
  let previous = null;
  for (let n = 0; n < steps; n++) {
    const clean = await denoise(x, times[n]);
    if (!(await afterStep(n + 1))) return null;
    if (n === steps - 1) return clean; // the step to sigma = 0
    const [from, to] = [sigmas[n], sigmas[n + 1]];
    const [fromAlpha, toAlpha] = [from, to].map((sigma) => 1 / Math.sqrt(sigma * sigma + 1));
    const h = Math.log(from / to);
    const keep = (to * toAlpha) / (from * fromAlpha);
    const gain = -toAlpha * Math.expm1(-h);
    // half of the change of the clean image, extrapolated to this step; none before the first
    const ahead = previous ? h / Math.log(sigmas[n - 1] / from) / 2 : 0;
    const next = new Float32Array(x.length);
    for (let i = 0; i < x.length; i++) {
      const change = previous ? clean[i] - previous[i] : 0;
      next[i] = keep * x[i] + gain * (clean[i] + ahead * change);
    }
    x = next;
    previous = clean;
  }
}

/** Classifier-free guidance: unconditional + scale * (conditional - unconditional). */
export function guide(both, scale) {
  const half = both.length / 2;
  const out = new Float32Array(half);
  for (let i = 0; i < half; i++) out[i] = both[half + i] + scale * (both[i] - both[half + i]);
  return out;
}

/** RGBA bytes of each image of a batch in [-1, 1], rounded and clipped; grey where it has one channel. */
export function toPixels(images, [channels, height, width]) {
  const area = height * width;
  return Array.from({ length: images.length / (channels * area) }, (_, k) => {
    const pixels = new Uint8ClampedArray(4 * area).fill(255);
    for (let channel = 0; channel < 3; channel++) {
      const start = (k * channels + Math.min(channel, channels - 1)) * area;
      for (let i = 0; i < area; i++) pixels[4 * i + channel] = (images[start + i] + 1) * 127.5;
    }
    return pixels;
  });
}
