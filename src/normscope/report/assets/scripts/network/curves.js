// What was measured along the training, and its curves.

const KEPT = 400;

/**
 * @typedef {object} Moment
 * @property {number} step
 * @property {{ loss: number, accuracy: number }} train
 * @property {{ loss: number, accuracy: number }} eval
 * @property {{ gamma: Float64Array, beta: Float64Array, mean: Float64Array, variance: Float64Array, runningMean: Float64Array, runningVar: Float64Array }[]} layers
 */

/** Moments of a training; when they become too many, every second one is dropped. */
class Recording {
  constructor() {
    /** @type {Moment[]} */
    this.moments = [];
  }

  /**
   * Take down where the run stands, once per step.
   * @param {Experiment} run after a pass over the last batch
   * @param {Measured} train
   * @param {Measured} evaluated
   */
  note(run, train, evaluated) {
    const last = this.moments.at(-1);
    if (last && last.step === run.steps) this.moments.pop();
    const copy = (/** @type {Float64Array} */ table, /** @type {number} */ size) => table.slice(0, size);
    this.moments.push({
      step: run.steps,
      train: { loss: train.loss, accuracy: train.accuracy },
      eval: { loss: evaluated.loss, accuracy: evaluated.accuracy },
      layers: run.net.layers.map((layer) => ({
        gamma: layer.gamma ? layer.gamma.value.slice() : new Float64Array(layer.units).fill(1),
        beta: layer.beta ? layer.beta.value.slice() : new Float64Array(layer.units),
        mean: copy(layer.mean, layer.groups * layer.units),
        variance: copy(layer.variance, layer.groups * layer.units),
        runningMean: layer.runningMean.slice(),
        runningVar: layer.runningVar.slice(),
      })),
    });
    if (this.moments.length > KEPT) this.moments = this.moments.filter((_, i) => i % 2 === 0);
  }
}

/**
 * @typedef {object} Curve
 * @property {number[]} values
 * @property {string} colour
 * @property {number} [width]
 * @property {number[]} [dash]
 * @property {number} [alpha]
 * @property {boolean} [dots]
 * @property {string} [name] at its end
 */

/**
 * Curves over the steps, named at their ends.
 * @param {Picture} picture
 * @param {object} what
 * @param {number[]} what.steps
 * @param {Curve[]} what.curves
 * @param {[number, number]} what.range
 * @param {Colours} what.colours
 * @param {(v: number) => string} what.format
 * @param {number} [what.level] a level to compare with
 */
function drawCurves(picture, { steps, curves, range: [low, high], colours, format, level }) {
  const c = picture.begin();
  const { width, height } = picture;
  c.font = `600 11.5px ${FONT}`;
  const room = Math.max(8, ...curves.map((curve) => (curve.name ? c.measureText(curve.name).width + 8 : 0)));
  const [left, right, top, bottom] = [38, width - room, 8, height - 20];
  const last = Math.max(1, steps.at(-1) ?? 1);
  const across = (/** @type {number} */ step) => left + (step / last) * (right - left);
  const up = (/** @type {number} */ v) => bottom - ((Math.min(high, Math.max(low, v)) - low) / (high - low)) * (bottom - top);
  for (const value of ticks(low, high, Math.max(2, (bottom - top) / 34))) {
    picture.rule(left, up(value), right, up(value), colours.rule);
    picture.write(format(value), left - 6, up(value), { colour: colours.quiet, size: 10.5, align: "right" });
  }
  if (level !== undefined) picture.rule(left, up(level), right, up(level), colours.quiet, 1, [2, 3]);
  for (const value of ticks(0, last, Math.max(2, (right - left) / 90)).filter(Number.isInteger)) {
    picture.write(String(value), across(value), bottom + 11, { colour: colours.quiet, size: 10.5, align: "center" });
  }
  for (const { values, colour, width: thick = 2, dash = [], alpha = 1, dots } of curves) {
    c.globalAlpha = alpha;
    c.beginPath();
    let pen = false;
    values.forEach((v, i) => {
      if (!Number.isFinite(v)) return (pen = false);
      const [x, y] = [across(steps[i]), up(v)];
      if (dots) c.rect(x - 1, y - 1, 2, 2);
      else if (pen) c.lineTo(x, y);
      else c.moveTo(x, y);
      return (pen = true);
    });
    c.setLineDash(dash);
    c.strokeStyle = c.fillStyle = colour;
    c.lineWidth = thick;
    c.lineJoin = "round";
    if (dots) c.fill();
    else c.stroke();
    c.setLineDash([]);
    c.globalAlpha = 1;
  }
  // names at the ends keep a line's distance from each other
  const names = curves
    .filter((curve) => curve.name && curve.values.length)
    .map((curve) => ({ ...curve, y: up(/** @type {number} */ (curve.values.at(-1))) }))
    .sort((a, b) => a.y - b.y);
  names.forEach((curve, i) => {
    if (i && curve.y < names[i - 1].y + 13) curve.y = names[i - 1].y + 13;
  });
  const over = Math.max(0, (names.at(-1)?.y ?? 0) - bottom);
  for (const { name, y, colour } of names) {
    picture.write(/** @type {string} */ (name), right + 6, y - over, { colour, size: 11.5, bold: true });
  }
}

/**
 * A measure in both modes.
 * @param {Moment[]} moments
 * @param {"loss" | "accuracy"} what
 * @param {Colours} colours
 * @returns {Curve[]}
 */
const modeCurves = (moments, what, colours) =>
  /** @type {const} */ (["train", "eval"]).map((name) => ({
    values: moments.map((m) => m[name][what]),
    colour: colours[name],
    dash: name === "eval" ? [5, 3] : [],
    name: `${name}()`,
  }));

/**
 * Gamma and beta of a unit, for each group that has its own; those of the layer's other units faint.
 * @param {Moment[]} moments
 * @param {Hidden} layer
 * @param {number} l
 * @param {number} u
 * @param {Colours} colours
 */
function affineCurves(moments, layer, l, u, colours) {
  /** @type {Curve[]} */
  const curves = [];
  const grouped = layer.affineRows > 1;
  for (let at = 0; at < layer.affineRows * layer.units; at++) {
    const own = at % layer.units === u;
    const row = Math.floor(at / layer.units);
    for (const [name, symbol, colour] of /** @type {const} */ ([
      ["gamma", "γ", colours.accent],
      ["beta", "β", colours.eval],
    ])) {
      curves.push({
        values: moments.map((m) => m.layers[l][name][at]),
        colour: grouped ? colours.classes[row] : colour,
        alpha: own ? 1 : 0.22,
        width: own ? 2.25 : 1,
        dash: name === "beta" ? [5, 3] : [],
        name: own ? (grouped ? `${symbol} ${row + 1}` : symbol) : undefined,
      });
    }
  }
  return curves;
}

/**
 * A statistic of the batches and the running one, for each group that has its own.
 * @param {Moment[]} moments
 * @param {Hidden} layer
 * @param {number} l
 * @param {number} u
 * @param {Colours} colours
 * @param {"mean" | "deviation"} what
 * @returns {Curve[]}
 */
function statisticsCurves(moments, layer, l, u, colours, what) {
  if (!layer.tracks) return [];
  const values = (/** @type {"mean" | "variance" | "runningMean" | "runningVar"} */ name, /** @type {number} */ at) =>
    moments.map((m) => (what === "mean" ? m.layers[l][name][at] : Math.sqrt(m.layers[l][name][at])));
  const batch = what === "mean" ? "mean" : "variance";
  const running = what === "mean" ? "runningMean" : "runningVar";
  const name = say("network.running.short");
  return Array.from({ length: layer.groups }, (_, r) => {
    const at = r * layer.units + u;
    const grouped = layer.groups > 1;
    return [
      { values: values(batch, at), colour: grouped ? colours.classes[r] : colours.train, dots: true, alpha: 0.6 },
      {
        values: values(running, at),
        colour: grouped ? colours.classes[r] : colours.eval,
        name: grouped ? `${name} ${r + 1}` : name,
      },
    ];
  }).flat();
}

/**
 * From the lowest to the highest value, 0 and a level included, but no further than `within`.
 * @param {Curve[]} curves
 * @param {[number, number] | null} within
 * @param {number} [level]
 * @returns {[number, number]}
 */
function curveRange(curves, within, level = 0) {
  const finite = curves.flatMap((curve) => curve.values).filter(Number.isFinite);
  const [low, high] = [Math.min(...finite, 0), Math.max(...finite, 1.1 * level, 0.1)];
  if (within) return [Math.max(within[0], low), Math.min(within[1], high)];
  const room = 0.06 * (high - low);
  return [low - room, high + room];
}

const shownShort = (/** @type {number} */ value) => shownNumber(value, 2);
