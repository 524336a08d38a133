// One run: data, network and batches from the same seed; training and both modes measured.

/**
 * @typedef {object} Setting
 * @property {string} data
 * @property {Point[]} points where data is "own"
 * @property {number[]} hidden
 * @property {Norm} norm
 * @property {boolean} shared one gamma and beta for all groups
 * @property {number} batch
 * @property {number} ghost
 * @property {number} mix r: 0 mixed batches, 1 one class in each
 * @property {number} lr
 * @property {number} momentum of SGD
 * @property {number} running momentum of the running statistics
 * @property {"all" | "affine" | "weights"} learns
 * @property {number} domains 1 or 2
 * @property {number} seed
 */
/**
 * @typedef {object} Measured
 * @property {number} loss
 * @property {number} accuracy
 * @property {Int32Array} labels of the samples, in the order in which they were seen
 * @property {Int32Array} picked which samples they were
 * @property {Int32Array} predicted
 * @property {Float64Array[][]} stages by layer: h, z, y, a of every sample
 */
/** @typedef {"none" | "true" | "wrong"} Told which labels a network that asks for them is told */

/** @type {Setting} */
const DEFAULTS = {
  data: "moons",
  points: [],
  hidden: [8, 8],
  norm: "batch",
  shared: false,
  batch: 32,
  ghost: 8,
  mix: 0,
  lr: 0.1,
  momentum: 0.9,
  running: 0.1,
  learns: "all",
  domains: 1,
  seed: 1,
};

class Experiment {
  /**
   * @param {Setting} setting
   * @param {{ pixels: string, labels: string } | null} digits the images, where they are the data
   */
  constructor(setting, digits) {
    this.setting = setting;
    const { seed, norm, data } = setting;
    this.data =
      data === "digits" && digits
        ? unpackDigits(digits)
        : data === "own"
          ? fromPoints(setting.points)
          : makePoints(data, setting.domains, generator(seed * 4 + 1));
    this.net = new Network(
      {
        inputs: this.data.inputs,
        hidden: setting.hidden,
        classes: this.data.classes,
        domains: setting.domains,
        norm,
        sharedAffine: setting.shared,
        ghost: setting.ghost,
      },
      generator(seed * 4 + 2),
    );
    this.sampler = this.draws(3);
    this.steps = 0;
    this.batchLoss = 0;
  }

  /**
   * Batches as the setting makes them.
   * @param {number} stream of random numbers
   */
  draws(stream) {
    const { batch, mix, seed } = this.setting;
    return new Sampler(this.data, batch, mix, generator(seed * 4 + stream));
  }

  /** Draw from the data and by the setting of now. */
  renew() {
    this.sampler = this.draws(3);
  }

  /**
   * Take the statistics of the last batch once more; before the first step, of some batch.
   * @returns {Sampler}
   */
  lastPass() {
    const sampler = this.steps && this.sampler.drawn ? this.sampler : this.draws(4);
    if (!sampler.drawn) sampler.next();
    this.net.forward(sampler.batch, "batch");
    return sampler;
  }

  /** @param {number} count */
  train(count) {
    for (let i = 0; i < count; i++) {
      this.batchLoss = this.net.step(this.sampler.next(), this.setting, this.setting.running);
    }
    this.steps += count;
  }

  /** Replace the running statistics by those of all data together, as one batch. */
  recalibrate() {
    this.net.forward(this.data, "batch", 1);
  }

  /**
   * Measure loss and accuracy. In train() the data come in batches made as in training, about as
   * many samples as there are; in eval() all at once.
   * @param {"train" | "eval"} mode
   * @param {Told} [told] default: what training tells in train(), nothing in eval()
   * @returns {Measured}
   */
  measure(mode, told = mode === "train" ? "true" : "none") {
    const { data, setting, net } = this;
    const sampler =
      mode === "train"
        ? this.draws(4)
        : new Sampler(data, data.n, 0, generator(setting.seed * 4 + 4));
    // every class has as many batches of its own
    const turns = sampler.own && mode === "train" ? data.classes : 1;
    const rounds = turns * Math.max(1, Math.round(data.n / sampler.size / turns));
    const n = rounds * sampler.size;
    const groups = Int32Array.from({ length: sampler.size });
    const stages = net.layers.map((layer) =>
      Array.from({ length: 4 }, () => new Float64Array(n * layer.units)),
    );
    const labels = new Int32Array(n);
    const predicted = new Int32Array(n);
    const picked = new Int32Array(n);
    let loss = 0;
    let right = 0;
    for (let round = 0; round < rounds; round++) {
      const batch = sampler.next();
      const start = round * sampler.size;
      const off = told === "wrong" ? 1 : 0;
      for (let i = 0; i < batch.n; i++) groups[i] = (batch.labels[i] + off) % data.classes;
      const asked = { ...batch, labels: told === "none" ? null : groups };
      const logits = net.forward(asked, mode === "train" ? "batch" : "stored");
      const found = net.loss(batch.labels, batch.n);
      loss += found.loss / rounds;
      right += found.right;
      labels.set(batch.labels, start);
      picked.set(sampler.picked, start);
      for (let i = 0; i < batch.n; i++) predicted[start + i] = argmax(logits, i * data.classes, data.classes);
      net.layers.forEach(({ h, z, y, a, units }, l) => {
        const computed = [h, z, y, a];
        computed.forEach((v, s) => stages[l][s].set(v.subarray(0, batch.n * units), start * units));
      });
    }
    return { loss, accuracy: right / n, labels, picked, predicted, stages };
  }
}

/**
 * @param {Float64Array} values
 * @param {number} from
 * @param {number} count
 */
function argmax(values, from, count) {
  let best = 0;
  for (let k = 1; k < count; k++) if (values[from + k] > values[from + best]) best = k;
  return best;
}
