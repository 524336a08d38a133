// The settings a reader can choose, as text in the address, and the ready lessons.

/**
 * @typedef {object} Lesson
 * @property {string} name
 * @property {Partial<Setting>} set
 * @property {number} steps
 * @property {"train" | "eval"} [units] the mode in which it shows the units
 * @property {Record<string, number[]>} [measured] lowest, median and highest over its seeds
 * @property {Partial<Setting>} [against] what differs in the run it is compared with
 */

/** What each setting can be. @type {Record<string, (string | number | boolean)[]>} */
const CHOICES = {
  data: ["moons", "circles", "spiral", "xor", "blobs", "three", "digits", "own"],
  norm: NORMS,
  shared: [false, true],
  batch: [2, 4, 8, 16, 32, 64, 128],
  ghost: [2, 4, 8, 16],
  mix: [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1],
  lr: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1],
  momentum: [0, 0.5, 0.9],
  running: [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1],
  learns: ["all", "affine", "weights"],
  domains: [1, 2],
};
const LAYERS = 4;
const UNITS = 8;
const MOST_POINTS = 400;
const MOST_STEPS = 20000; // that a page trains when it is opened

/**
 * The settings that differ from the defaults, as "norm_ghost*batch_16*steps_750".
 * @param {Setting} setting
 * @param {Record<string, string | number>} more
 */
function encode(setting, more) {
  /** @type {string[]} */
  const parts = [];
  for (const [name, value] of Object.entries(setting)) {
    const usual = DEFAULTS[/** @type {keyof Setting} */ (name)];
    if (name === "points") {
      if (setting.data === "own") parts.push(`points_${setting.points.map(encodePoint).join("")}`);
    } else if (String(value) !== String(usual)) {
      parts.push(`${name}_${Array.isArray(value) ? value.join("-") : value}`);
    }
  }
  for (const [name, value] of Object.entries(more)) if (value) parts.push(`${name}_${value}`);
  return parts.join("*");
}

/** One digit for the class, three each for x and y. @param {Point} point */
function encodePoint({ x, y, label }) {
  const place = (/** @type {number} */ v, /** @type {number} */ reach) =>
    String(Math.round(Math.min(1, Math.max(0, (v + reach) / (2 * reach))) * 999)).padStart(3, "0");
  return `${label}${place(x, WIDE)}${place(y, REACH)}`;
}

/** @param {string} text @returns {Point[]} */
function decodePoints(text) {
  const points = [];
  for (const [, label, x, y] of text.matchAll(/([0-3])(\d{3})(\d{3})/g)) {
    const place = (/** @type {string} */ v, /** @type {number} */ reach) => (Number(v) / 999) * 2 * reach - reach;
    points.push({ x: place(x, WIDE), y: place(y, REACH), label: Number(label) });
  }
  return points.slice(0, MOST_POINTS);
}

/**
 * What an address says; what it says wrongly is left at its default.
 * @param {string} text
 * @returns {{ setting: Setting, more: Record<string, string> }}
 */
function decode(text) {
  /** @type {Setting} */
  const setting = structuredClone(DEFAULTS);
  /** @type {Record<string, string>} */
  const more = {};
  for (const part of text.split("*")) {
    const at = part.indexOf("_");
    const [name, value] = [part.slice(0, at), part.slice(at + 1)];
    const allowed = Object.hasOwn(CHOICES, name) ? CHOICES[name].find((c) => String(c) === value) : undefined;
    if (allowed !== undefined) Object.assign(setting, { [name]: allowed });
    else if (name === "hidden" && /^[1-8](-[1-8]){0,3}$/.test(value)) setting.hidden = value.split("-").map(Number);
    else if (name === "seed" && /^\d{1,4}$/.test(value)) setting.seed = Number(value);
    else if (name === "points") setting.points = decodePoints(value);
    else more[name] = value;
  }
  return { setting: sound(setting), more };
}

/**
 * The setting with what cannot be together corrected: a condition needs domains, points need points.
 * @param {Setting} setting
 * @returns {Setting}
 */
function sound(setting) {
  const result = { ...setting };
  if (result.norm === "conditional") result.domains = 2;
  if (!Object.hasOwn(SHAPES, result.data)) result.domains = 1;
  if (result.norm === "conditional" && result.domains === 1) result.norm = "batch";
  if (result.data === "own" && result.points.length < 2) result.data = "moons";
  return result;
}

/**
 * Play a lesson from one seed: accuracy before and after, and of the run it is compared with.
 * @param {Lesson} lesson
 * @param {number} seed
 * @returns {Record<string, number>}
 */
function playLesson(lesson, seed) {
  const setting = { ...DEFAULTS, ...lesson.set, seed };
  const run = new Experiment(setting, null);
  const before = run.measure("eval").accuracy;
  run.train(lesson.steps);
  const found = {
    before,
    train: run.measure("train").accuracy,
    eval: run.measure("eval").accuracy,
    wrong: run.measure("train", "wrong").accuracy,
    told: run.measure("eval", "true").accuracy,
  };
  run.recalibrate();
  const again = run.measure("eval").accuracy;
  if (!lesson.against) return { ...found, again };
  const other = new Experiment({ ...setting, ...lesson.against }, null);
  other.train(lesson.steps);
  return { ...found, again, against: other.measure("eval").accuracy };
}
