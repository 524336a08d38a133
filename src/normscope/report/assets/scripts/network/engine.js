// A small classifier with a normalisation layer after every linear one, in float64.
//
// One idea: partition the batch into groups, standardise each group per unit, map it back with
// gamma and beta. Whole batch: batch norm. Class or domain: per class, conditional. Chunks: ghost.
// Layer norm standardises each sample over its units instead.
//
// Tables are row-major Float64Arrays: values (sample, unit), weights (unit, input), statistics
// (group, unit). Formulas, defaults and the treatment of single values are those of normscope's
// layers, which are those of PyTorch.

/** @typedef {"none" | "batch" | "noaffine" | "per_class" | "ghost" | "conditional" | "layer"} Norm */
/** @typedef {"batch" | "stored" | "last"} Source where mean and variance come from */
/** @typedef {{ name: string, value: Float64Array, grad: Float64Array, velocity: Float64Array, affine: boolean }} Parameter */
/**
 * @typedef {object} Shape
 * @property {number} inputs
 * @property {number[]} hidden units of each hidden layer
 * @property {number} classes
 * @property {number} domains
 * @property {Norm} norm
 * @property {boolean} [sharedAffine] one gamma and beta for all groups
 * @property {number} [ghost] samples per chunk
 * @property {number} [eps]
 */
/**
 * @typedef {object} Rate
 * @property {number} lr
 * @property {number} momentum of SGD
 * @property {"all" | "affine" | "weights"} learns
 */
/**
 * @typedef {object} Batch
 * @property {Float64Array} x (n, inputs)
 * @property {number} n
 * @property {Int32Array | null} labels null where they are not told
 * @property {Int32Array | null} domains
 */

/** @type {Norm[]} */
const NORMS = ["none", "batch", "noaffine", "per_class", "ghost", "conditional", "layer"];

/**
 * @param {string} name
 * @param {number} size
 * @param {boolean} affine
 * @returns {Parameter}
 */
function parameter(name, size, affine) {
  return {
    name,
    value: new Float64Array(size),
    grad: new Float64Array(size),
    velocity: new Float64Array(size),
    affine,
  };
}

/** y = x W^T + b, started as torch.nn.Linear. */
class Linear {
  /**
   * @param {string} name
   * @param {number} inputs
   * @param {number} units
   * @param {Random} random
   */
  constructor(name, inputs, units, random) {
    this.inputs = inputs;
    this.units = units;
    this.weight = parameter(`${name}.weight`, inputs * units, false);
    this.bias = parameter(`${name}.bias`, units, false);
    const reach = 1 / Math.sqrt(inputs);
    for (const table of [this.weight.value, this.bias.value]) {
      for (let i = 0; i < table.length; i++) table[i] = (2 * random() - 1) * reach;
    }
  }

  /**
   * @param {Float64Array} x
   * @param {number} n
   * @param {Float64Array} out
   */
  forward(x, n, out) {
    const { inputs, units } = this;
    const w = this.weight.value;
    const b = this.bias.value;
    for (let i = 0; i < n; i++) {
      for (let u = 0; u < units; u++) {
        let sum = b[u];
        for (let k = 0, at = u * inputs, from = i * inputs; k < inputs; k++) sum += w[at + k] * x[from + k];
        out[i * units + u] = sum;
      }
    }
  }

  /**
   * Write the gradients of weight and bias, and that of x where it is asked for.
   * @param {Float64Array} x
   * @param {number} n
   * @param {Float64Array} dout
   * @param {Float64Array | null} dx
   */
  backward(x, n, dout, dx) {
    const { inputs, units } = this;
    const w = this.weight.value;
    const dw = this.weight.grad.fill(0);
    const db = this.bias.grad.fill(0);
    if (dx) dx.fill(0, 0, n * inputs);
    for (let i = 0; i < n; i++) {
      for (let u = 0; u < units; u++) {
        const d = dout[i * units + u];
        if (d === 0) continue;
        db[u] += d;
        for (let k = 0, at = u * inputs, from = i * inputs; k < inputs; k++) {
          dw[at + k] += d * x[from + k];
          if (dx) dx[from + k] += d * w[at + k];
        }
      }
    }
  }
}

/** Linear, norm, ReLU. Keeps what the last forward pass computed: h (before the norm), z, y, a. */
class Hidden {
  /**
   * @param {string} name
   * @param {number} inputs
   * @param {number} units
   * @param {Required<Shape>} shape
   * @param {Random} random
   */
  constructor(name, inputs, units, shape, random) {
    this.linear = new Linear(`${name}.linear`, inputs, units, random);
    this.units = units;
    this.norm = shape.norm;
    this.eps = shape.eps;
    /** groups with running statistics of their own */
    this.groups = shape.norm === "per_class" ? shape.classes : shape.norm === "conditional" ? shape.domains : 1;
    this.grouped = shape.norm === "per_class" || shape.norm === "conditional";
    this.tracks = shape.norm !== "none" && shape.norm !== "layer";
    const affine = shape.norm !== "none" && shape.norm !== "noaffine";
    this.affineRows = this.grouped && !shape.sharedAffine ? this.groups : 1;
    this.gamma = affine ? parameter(`${name}.norm.weight`, this.affineRows * units, true) : null;
    this.beta = affine ? parameter(`${name}.norm.bias`, this.affineRows * units, true) : null;
    this.gamma?.value.fill(1);
    this.runningMean = new Float64Array(this.groups * units);
    this.runningVar = new Float64Array(this.groups * units).fill(1);
    this.seen = new Float64Array(this.groups); // batches
    // mean, variance and 1 / sqrt(variance + eps) that the last pass used, (rows, unit)
    this.rows = 1;
    this.count = new Float64Array(1);
    this.mean = new Float64Array(units);
    this.variance = new Float64Array(units).fill(1);
    this.rstd = new Float64Array(units);
    this.sampleRstd = new Float64Array(0); // of layer norm
    this.sums = new Float64Array(0);
    // (sample, unit): before the norm, standardised, scaled and shifted, after ReLU, its gradient
    this.h = new Float64Array(0);
    this.z = new Float64Array(0);
    this.y = new Float64Array(0);
    this.a = new Float64Array(0);
    this.da = new Float64Array(0);
  }

  /** @param {number} n */
  resize(n) {
    for (const name of /** @type {const} */ (["h", "z", "y", "a", "da"])) this[name] = new Float64Array(n * this.units);
  }

  /** @param {number} rows */
  reserve(rows) {
    this.rows = rows;
    if (this.count.length >= rows) return;
    this.count = new Float64Array(rows);
    this.mean = new Float64Array(rows * this.units);
    this.variance = new Float64Array(rows * this.units);
    this.rstd = new Float64Array(rows * this.units);
  }

  /**
   * Mean and biased variance of each group and unit, in two passes.
   * @param {number} n
   * @param {Int32Array | null} ids
   * @param {number} rows
   */
  measure(n, ids, rows) {
    const { units, h } = this;
    this.reserve(rows);
    const { count, mean, variance } = this;
    count.fill(0);
    mean.fill(0);
    variance.fill(0);
    for (let i = 0; i < n; i++) {
      const r = ids ? ids[i] : 0;
      count[r]++;
      for (let u = 0; u < units; u++) mean[r * units + u] += h[i * units + u];
    }
    for (let r = 0; r < rows; r++) {
      for (let u = 0; u < units; u++) mean[r * units + u] /= Math.max(1, count[r]);
    }
    for (let i = 0; i < n; i++) {
      const r = ids ? ids[i] : 0;
      for (let u = 0; u < units; u++) variance[r * units + u] += (h[i * units + u] - mean[r * units + u]) ** 2;
    }
    for (let r = 0; r < rows; r++) {
      for (let u = 0; u < units; u++) variance[r * units + u] /= Math.max(1, count[r]);
    }
  }

  /** Fill up a group of one sample with one value that has the running mean and variance. */
  fillUp() {
    const { units, mean, variance } = this;
    for (let r = 0; r < this.rows; r++) {
      if (this.count[r] > 1) continue;
      for (let at = r * units; at < (r + 1) * units; at++) {
        const off = mean[at] - this.runningMean[at];
        const single = this.count[r] === 1;
        variance[at] = single ? this.runningVar[at] / 2 + (off * off) / 4 : this.runningVar[at];
        mean[at] = this.runningMean[at] + (single ? off / 2 : 0);
      }
    }
  }

  /**
   * Move the running statistics towards the batch's, whose variance they keep unbiased.
   * @param {number} momentum
   */
  track(momentum) {
    const { units, mean, variance, count } = this;
    if (!this.grouped && this.rows > 1) return this.trackTogether(momentum);
    for (let r = 0; r < this.rows; r++) {
      const n = count[r];
      if (n < 2) continue;
      this.seen[r]++;
      for (let at = r * units; at < (r + 1) * units; at++) {
        this.runningMean[at] += momentum * (mean[at] - this.runningMean[at]);
        this.runningVar[at] += momentum * ((variance[at] * n) / (n - 1) - this.runningVar[at]);
      }
    }
  }

  /**
   * The chunks of a batch make one update, by the law of total variance.
   * @param {number} momentum
   */
  trackTogether(momentum) {
    const { units, mean, variance, count, rows } = this;
    let n = 0;
    for (let r = 0; r < rows; r++) n += count[r];
    this.seen[0]++;
    for (let u = 0; u < units; u++) {
      let centre = 0;
      for (let r = 0; r < rows; r++) centre += (count[r] * mean[r * units + u]) / n;
      let m2 = 0;
      for (let r = 0; r < rows; r++) {
        m2 += count[r] * (variance[r * units + u] + (mean[r * units + u] - centre) ** 2);
      }
      this.runningMean[u] += momentum * (centre - this.runningMean[u]);
      this.runningVar[u] += momentum * (m2 / (n - 1) - this.runningVar[u]);
    }
  }

  /** One mean and variance for all groups, weighted by the batches each was seen in. */
  pooled() {
    const { units, groups, runningMean, runningVar, seen } = this;
    const mean = new Float64Array(units);
    const variance = new Float64Array(units);
    const any = seen.some((s) => s > 0);
    const total = any ? seen.reduce((sum, s) => sum + s, 0) : groups;
    const share = (/** @type {number} */ g) => (any ? seen[g] : 1) / total;
    for (let u = 0; u < units; u++) {
      for (let g = 0; g < groups; g++) mean[u] += share(g) * runningMean[g * units + u];
      for (let g = 0; g < groups; g++) {
        const at = g * units + u;
        variance[u] += share(g) * (runningVar[at] + (runningMean[at] - mean[u]) ** 2);
      }
    }
    return { mean, variance };
  }

  /**
   * Gamma and beta as rows; without groups told, their means over the groups.
   * @param {boolean} told
   */
  affine(told) {
    if (!this.gamma || !this.beta) return null;
    const { units, affineRows } = this;
    if (told || affineRows === 1) return { gamma: this.gamma.value, beta: this.beta.value, rows: affineRows };
    const average = (/** @type {Float64Array} */ table) =>
      Float64Array.from({ length: units }, (_, u) => {
        let sum = 0;
        for (let r = 0; r < affineRows; r++) sum += table[r * units + u];
        return sum / affineRows;
      });
    return { gamma: average(this.gamma.value), beta: average(this.beta.value), rows: 1 };
  }

  /**
   * Set mean, variance and rstd for this pass.
   * @param {number} n
   * @param {Int32Array | null} ids
   * @param {number} rows
   * @param {Source} source
   */
  choose(n, ids, rows, source) {
    if (source === "batch") {
      this.measure(n, ids, rows);
      if (this.grouped) this.fillUp();
    } else if (source === "stored") {
      const own = ids && this.grouped;
      const from = own || this.groups === 1 ? { mean: this.runningMean, variance: this.runningVar } : this.pooled();
      this.reserve(own ? this.groups : 1);
      this.mean.set(from.mean);
      this.variance.set(from.variance);
    }
    const size = this.rows * this.units;
    for (let at = 0; at < size; at++) this.rstd[at] = 1 / Math.sqrt(this.variance[at] + this.eps);
  }

  /**
   * @param {Float64Array} x
   * @param {number} n
   * @param {Int32Array | null} ids the row of the statistics for each sample
   * @param {number} rows
   * @param {Source} source
   */
  forward(x, n, ids, rows, source) {
    const { units } = this;
    if (this.h.length < n * units) this.resize(n);
    this.linear.forward(x, n, this.h);
    const { h, z, y, a } = this;
    if (this.norm === "none") z.set(h.subarray(0, n * units));
    else if (this.norm === "layer") this.standardiseSamples(n);
    else {
      this.choose(n, ids, rows, source);
      const { mean, rstd } = this;
      for (let i = 0; i < n; i++) {
        const r = (ids && this.rows > 1 ? ids[i] : 0) * units;
        for (let u = 0; u < units; u++) z[i * units + u] = (h[i * units + u] - mean[r + u]) * rstd[r + u];
      }
    }
    const map = this.affine(Boolean(ids));
    for (let i = 0; i < n; i++) {
      const r = (map && map.rows > 1 && ids ? ids[i] : 0) * units;
      for (let u = 0, at = i * units; u < units; u++, at++) {
        y[at] = map ? z[at] * map.gamma[r + u] + map.beta[r + u] : z[at];
        a[at] = y[at] > 0 ? y[at] : 0;
      }
    }
  }

  /** @param {number} n */
  standardiseSamples(n) {
    const { units, h, z } = this;
    this.reserve(1);
    if (this.sampleRstd.length < n) this.sampleRstd = new Float64Array(n);
    for (let i = 0; i < n; i++) {
      let mean = 0;
      for (let u = 0; u < units; u++) mean += h[i * units + u];
      mean /= units;
      let variance = 0;
      for (let u = 0; u < units; u++) variance += (h[i * units + u] - mean) ** 2;
      const rstd = 1 / Math.sqrt(variance / units + this.eps);
      this.sampleRstd[i] = rstd;
      for (let u = 0; u < units; u++) z[i * units + u] = (h[i * units + u] - mean) * rstd;
    }
  }

  /**
   * From the gradient of a, left in da, to those of the parameters and of x. After a pass with
   * source "batch" only.
   * @param {Float64Array} x
   * @param {number} n
   * @param {Int32Array | null} ids
   * @param {Float64Array | null} dx
   */
  backward(x, n, ids, dx) {
    const { units, da, y, z } = this;
    const gamma = this.gamma;
    const beta = this.beta;
    gamma?.grad.fill(0);
    beta?.grad.fill(0);
    for (let i = 0; i < n; i++) {
      const r = (this.affineRows > 1 && ids ? ids[i] : 0) * units;
      for (let u = 0, at = i * units; u < units; u++, at++) {
        if (y[at] <= 0) da[at] = 0;
        if (!gamma || !beta) continue;
        gamma.grad[r + u] += da[at] * z[at];
        beta.grad[r + u] += da[at];
        da[at] *= gamma.value[r + u];
      }
    }
    if (this.norm === "layer") this.backwardSamples(n);
    else if (this.norm !== "none") this.backwardGroups(n, ids);
    this.linear.backward(x, n, da, dx);
  }

  /**
   * dh = rstd (dz - mean(dz) - z mean(dz z)), means over the group.
   * @param {number} n
   * @param {Int32Array | null} ids
   */
  backwardGroups(n, ids) {
    const { units, da, z, rows, rstd, count } = this;
    const size = rows * units;
    if (this.sums.length < 2 * size) this.sums = new Float64Array(2 * size);
    const sums = this.sums.fill(0);
    for (let i = 0; i < n; i++) {
      const r = (ids && rows > 1 ? ids[i] : 0) * units;
      for (let u = 0, at = i * units; u < units; u++, at++) {
        sums[r + u] += da[at];
        sums[size + r + u] += da[at] * z[at];
      }
    }
    const least = this.grouped ? 2 : 1; // a group of one was filled up
    for (let i = 0; i < n; i++) {
      const row = ids && rows > 1 ? ids[i] : 0;
      const r = row * units;
      const share = 1 / Math.max(least, count[row]);
      for (let u = 0, at = i * units; u < units; u++, at++) {
        da[at] = rstd[r + u] * (da[at] - share * (sums[r + u] + z[at] * sums[size + r + u]));
      }
    }
  }

  /** @param {number} n */
  backwardSamples(n) {
    const { units, da, z } = this;
    for (let i = 0; i < n; i++) {
      let sum = 0;
      let product = 0;
      for (let u = 0, at = i * units; u < units; u++, at++) {
        sum += da[at];
        product += da[at] * z[at];
      }
      for (let u = 0, at = i * units; u < units; u++, at++) {
        da[at] = this.sampleRstd[i] * (da[at] - (sum + z[at] * product) / units);
      }
    }
  }
}

/** Hidden layers and a linear head under softmax cross-entropy. */
class Network {
  /**
   * @param {Shape} shape
   * @param {Random} random
   */
  constructor(shape, random) {
    this.shape = { sharedAffine: false, ghost: 8, eps: 1e-5, ...shape };
    let inputs = shape.inputs;
    this.layers = shape.hidden.map((units, l) => {
      const layer = new Hidden(`hidden${l}`, inputs, units, this.shape, random);
      inputs = units;
      return layer;
    });
    this.head = new Linear("head", inputs, shape.classes, random);
    this.logits = new Float64Array(0);
    this.dlogits = new Float64Array(0);
    this.chunks = new Int32Array(0);
    /** @type {Parameter[]} */
    this.parameters = [];
    for (const { linear, gamma, beta } of this.layers) {
      this.parameters.push(linear.weight, linear.bias);
      if (gamma && beta) this.parameters.push(gamma, beta);
    }
    this.parameters.push(this.head.weight, this.head.bias);
  }

  /**
   * Partition a batch: the row of the statistics for each sample, and how many rows there are.
   * @param {Batch} batch
   * @param {Source} source
   * @returns {[Int32Array | null, number]}
   */
  partition({ n, labels, domains }, source) {
    const { norm, classes, domains: count, ghost } = this.shape;
    if (norm === "per_class") return [labels, labels ? classes : 1];
    if (norm === "conditional") return [domains, domains ? count : 1];
    if (norm !== "ghost" || source !== "batch") return [null, 1];
    const rows = Math.max(1, Math.floor(n / ghost)); // the rest joins the last chunk
    if (this.chunks.length < n) this.chunks = new Int32Array(n);
    for (let i = 0; i < n; i++) this.chunks[i] = Math.min(rows - 1, Math.floor(i / ghost));
    return [this.chunks, rows];
  }

  /**
   * Compute the logits, (n, classes).
   *
   * Source "batch" is train(): mean and variance of these samples. "stored" is eval(): the running
   * ones, pooled over the groups where the groups are not told. "last" keeps those of the last
   * batch, which makes the network of one moment of training a function of a single sample.
   * @param {Batch} batch
   * @param {Source} source
   * @param {number} [momentum] of the running statistics; none: they stay
   */
  forward(batch, source, momentum) {
    const [ids, rows] = this.partition(batch, source);
    let x = batch.x;
    for (const layer of this.layers) {
      layer.forward(x, batch.n, ids, rows, source);
      if (momentum !== undefined && layer.tracks) layer.track(momentum);
      x = layer.a;
    }
    const size = batch.n * this.shape.classes;
    if (this.logits.length < size) {
      this.logits = new Float64Array(size);
      this.dlogits = new Float64Array(size);
    }
    this.head.forward(x, batch.n, this.logits);
    return this.logits;
  }

  /**
   * Mean cross-entropy of the last pass and how many are right; leaves the logits' gradient.
   * @param {Int32Array} labels
   * @param {number} n
   */
  loss(labels, n) {
    const { logits, dlogits } = this;
    const classes = this.shape.classes;
    let loss = 0;
    let right = 0;
    for (let i = 0; i < n; i++) {
      const from = i * classes;
      let best = 0;
      for (let k = 1; k < classes; k++) if (logits[from + k] > logits[from + best]) best = k;
      if (best === labels[i]) right++;
      const top = logits[from + best];
      let sum = 0;
      for (let k = 0; k < classes; k++) sum += dlogits[from + k] = Math.exp(logits[from + k] - top);
      loss += Math.log(sum) + top - logits[from + labels[i]];
      for (let k = 0; k < classes; k++) dlogits[from + k] /= sum * n;
      dlogits[from + labels[i]] -= 1 / n;
    }
    return { loss: loss / n, right };
  }

  /**
   * Compute every gradient, after forward(batch, "batch") and loss.
   * @param {Batch} batch
   */
  backward(batch) {
    const [ids] = this.partition(batch, "batch");
    const last = this.layers.length - 1;
    this.head.backward(this.layers[last].a, batch.n, this.dlogits, this.layers[last].da);
    for (let l = last; l >= 0; l--) {
      const below = l ? this.layers[l - 1] : null;
      this.layers[l].backward(below ? below.a : batch.x, batch.n, ids, below ? below.da : null);
    }
  }

  /**
   * One step of SGD with momentum, as torch.optim.SGD.
   * @param {Rate} rate
   */
  update({ lr, momentum, learns }) {
    for (const { value, grad, velocity, affine } of this.parameters) {
      if (learns !== "all" && (learns === "affine") !== affine) continue;
      for (let i = 0; i < value.length; i++) {
        velocity[i] = momentum * velocity[i] + grad[i];
        value[i] -= lr * velocity[i];
      }
    }
  }

  /**
   * One training step; returns the batch's loss.
   * @param {Batch & { labels: Int32Array }} batch
   * @param {Rate} rate
   * @param {number} running momentum of the running statistics
   */
  step(batch, rate, running) {
    this.forward(batch, "batch", running);
    const { loss } = this.loss(batch.labels, batch.n);
    this.backward(batch);
    this.update(rate);
    return loss;
  }
}
