// Points to learn from. Made from a seed; digits come with the page; own points from the reader.

/**
 * @typedef {object} Data
 * @property {Float64Array} x (n, inputs)
 * @property {Int32Array} labels
 * @property {Int32Array} domains
 * @property {number} n
 * @property {number} inputs
 * @property {number} classes
 */
/** @typedef {{ x: number, y: number, label: number }} Point */

const POINTS = 400;
const REACH = 2.2; // the picture shows -REACH to REACH upwards
const WIDE = 1.28 * REACH; // and -WIDE to WIDE across

/**
 * @typedef {(t: number, k: number, random: Random) => [number, number]} Draw
 * One point of class k; t runs evenly over [0, 1).
 */
/** @type {Record<string, { classes: number, copies?: boolean, draw: Draw }>} */
const SHAPES = {
  moons: {
    classes: 2,
    draw: (t, k, random) => {
      const angle = Math.PI * t;
      const [x, y] = k ? [1 - Math.cos(angle), 0.5 - Math.sin(angle)] : [Math.cos(angle), Math.sin(angle)];
      return [(x - 0.5) * 1.3 + 0.13 * normal(random), (y - 0.25) * 1.3 + 0.13 * normal(random)];
    },
  },
  circles: {
    classes: 2,
    draw: (t, k, random) => {
      const radius = (k ? 1.7 : 0.75) + 0.13 * normal(random);
      return [radius * Math.cos(2 * Math.PI * t), radius * Math.sin(2 * Math.PI * t)];
    },
  },
  spiral: {
    classes: 2,
    draw: (t, k, random) => {
      const radius = 0.15 + 1.85 * t;
      const angle = 3 * Math.PI * t + Math.PI * k;
      return [radius * Math.cos(angle) + 0.06 * normal(random), radius * Math.sin(angle) + 0.06 * normal(random)];
    },
  },
  xor: {
    classes: 2,
    draw: (_, k, random) => {
      const [x, y] = [0.12 + 1.7 * random(), 0.12 + 1.7 * random()];
      const side = random() < 0.5 ? 1 : -1;
      return [side * x, (k ? -1 : 1) * side * y];
    },
  },
  // one blob is a shifted copy of the other: standardised by itself, each is the same
  blobs: {
    classes: 2,
    copies: true,
    draw: (_, k, random) => {
      const side = k ? 1 : -1;
      return [side * 1.1 + 0.35 * normal(random), side * 0.6 + 0.35 * normal(random)];
    },
  },
  three: {
    classes: 3,
    draw: (t, k, random) => {
      const radius = 0.25 + 1.6 * t;
      const angle = 1.6 * t + (2 * Math.PI * k) / 3;
      return [radius * Math.cos(angle) + 0.1 * normal(random), radius * Math.sin(angle) + 0.1 * normal(random)];
    },
  },
};

/**
 * Classes and domains take turns, so that both are balanced.
 * @param {string} name
 * @param {number} domains 2: half of the points come shrunk, shifted and turned round
 * @param {Random} random
 * @returns {Data}
 */
function makePoints(name, domains, random) {
  const { classes, copies, draw } = SHAPES[name];
  const data = emptyData(POINTS, 2, classes);
  const each = POINTS / classes;
  let same = 0;
  for (let i = 0; i < POINTS; i++) {
    const k = i % classes;
    if (k === 0) same = Math.floor(random() * 2 ** 32);
    let [x, y] = draw(Math.floor(i / classes) / each, k, copies ? generator(same) : random);
    const domain = domains > 1 ? Math.floor(i / classes) % 2 : 0;
    if (domains > 1) [x, y] = domain ? [1.1 - 0.45 * x, 1.1 - 0.45 * y] : [0.55 * x - 0.9, 0.55 * y - 0.9];
    data.x[2 * i] = x;
    data.x[2 * i + 1] = y;
    data.labels[i] = k;
    data.domains[i] = domain;
  }
  return data;
}

/**
 * @param {number} n
 * @param {number} inputs
 * @param {number} classes
 * @returns {Data}
 */
function emptyData(n, inputs, classes) {
  return {
    x: new Float64Array(n * inputs),
    labels: new Int32Array(n),
    domains: new Int32Array(n),
    n,
    inputs,
    classes,
  };
}

/**
 * The 8 x 8 digits: one character per pixel (0-9 and a-g for 0 to 16), one row per image.
 * @param {{ pixels: string, labels: string }} packed
 * @returns {Data}
 */
function unpackDigits(packed) {
  const n = packed.labels.length;
  const data = emptyData(n, 64, 10);
  for (let i = 0; i < n; i++) data.labels[i] = Number(packed.labels[i]);
  for (let i = 0; i < n * 64; i++) data.x[i] = (parseInt(packed.pixels[i], 17) - 5) / 6;
  return data;
}

/**
 * @param {Point[]} points
 * @returns {Data}
 */
function fromPoints(points) {
  const data = emptyData(points.length, 2, Math.max(2, ...points.map((p) => p.label + 1)));
  points.forEach((p, i) => {
    data.x.set([p.x, p.y], 2 * i);
    data.labels[i] = p.label;
  });
  return data;
}

/**
 * Draws batches. With r = 0 they are mixed: every epoch is the data in a new order. With r = 1
 * each holds one class. Between, two samples of a batch are of one class more often than chance
 * by r: each sample comes from the batch's own class with probability sqrt(r).
 */
class Sampler {
  /**
   * @param {Data} data
   * @param {number} size of a batch
   * @param {number} r
   * @param {Random} random
   */
  constructor(data, size, r, random) {
    this.data = data;
    this.size = Math.max(2, Math.min(size, data.n));
    this.own = Math.sqrt(r);
    this.random = random;
    /** @type {number[][]} */
    const members = Array.from({ length: data.classes }, () => []);
    data.labels.forEach((k, i) => members[k].push(i));
    this.mixed = new Deck(Array.from({ length: data.n }, (_, i) => i), random);
    this.byClass = members.map((m) => new Deck(m, random));
    const present = members.flatMap((m, k) => (m.length ? [k] : []));
    this.turn = new Deck(present, random); // every class has its turn
    this.batch = emptyData(this.size, data.inputs, data.classes);
    this.picked = new Int32Array(this.size);
    this.drawn = 0;
  }

  /** The next batch; its arrays are used again for the one after it. */
  next() {
    const { data, batch, size, picked } = this;
    // a batch of an epoch never reaches into the next
    if (this.own === 0 && this.mixed.left < size) this.mixed.shuffle();
    const home = this.byClass[this.own ? this.turn.draw() : 0];
    for (let i = 0; i < size; i++) {
      const from = this.own && (this.own === 1 || this.random() < this.own) ? home : this.mixed;
      picked[i] = from.draw();
    }
    gather(data, picked, batch);
    this.drawn++;
    return batch;
  }
}

/** Items in random order, begun anew when all were drawn. */
class Deck {
  /**
   * @param {number[]} items
   * @param {Random} random
   */
  constructor(items, random) {
    this.items = items;
    this.random = random;
    this.order = new Int32Array(0);
    this.left = 0;
  }

  shuffle() {
    this.order = shuffled(this.items.length, this.random);
    this.left = this.items.length;
  }

  draw() {
    if (!this.left) this.shuffle();
    return this.items[this.order[--this.left]];
  }
}

/**
 * @param {Data} data
 * @param {Int32Array} picked
 * @param {Data} batch written
 */
function gather(data, picked, batch) {
  const { inputs } = data;
  for (let i = 0; i < picked.length; i++) {
    const from = picked[i];
    for (let k = 0; k < inputs; k++) batch.x[i * inputs + k] = data.x[from * inputs + k];
    batch.labels[i] = data.labels[from];
    batch.domains[i] = data.domains[from];
  }
}
