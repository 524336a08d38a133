// Random numbers from a seed: the same on every machine.

/** @typedef {() => number} Random uniform in [0, 1) */

/**
 * Uniform numbers from a seed, the same on every machine (mulberry32).
 * @param {number} seed
 * @returns {Random}
 */
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * One standard normal number (Box and Muller).
 * @param {Random} random
 */
const normal = (random) => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

/**
 * The numbers 0 to n - 1 in random order (Fisher and Yates).
 * @param {number} n
 * @param {Random} random
 */
function shuffled(n, random) {
  const order = Int32Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
