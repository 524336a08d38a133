// Every unit's class distributions on the way through its layer: before the norm (x), standardised
// (z), scaled and shifted (y), after ReLU; with the gate, the place where y = 0.

const STAGES = ["x", "z", "y", "relu"];
const BINS = 36;

/**
 * @typedef {object} Axes of one unit; z, y and ReLU share one, so that gamma and beta are seen
 * @property {[number, number]} x
 * @property {[number, number]} z
 */

/**
 * The axes of a unit. They reach to three standard deviations from the mean, or as far as there
 * are values; z and y have 0 in the middle and a round end, so that they rarely move.
 * @param {Measured} measured
 * @param {number} l
 * @param {number} u
 * @param {number} units
 * @returns {Axes}
 */
function unitAxes(measured, l, u, units) {
  const [x, z, y] = measured.stages[l].map((values) => reach(values, u, units));
  const far = Math.max(2, -z[0], z[1], -y[0], y[1]);
  const end = [2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 40].find((e) => e >= far) ?? far;
  return { x, z: [-end, end] };
}

/**
 * The share of each class that a unit's gate lets through.
 * @param {Measured} measured
 * @param {number} classes
 * @param {number} l
 * @param {number} u
 * @param {number} units
 */
function passingShares({ stages, labels }, classes, l, u, units) {
  const open = new Float64Array(classes);
  const of = new Float64Array(classes);
  labels.forEach((k, i) => {
    of[k]++;
    if (stages[l][2][i * units + u] > 0) open[k]++;
  });
  return Array.from(open, (count, k) => count / (of[k] || 1));
}

/**
 * @param {Float64Array} values (n, units)
 * @param {number} u
 * @param {number} units
 * @returns {[number, number]}
 */
function reach(values, u, units) {
  const n = values.length / units;
  let [sum, squares, low, high] = [0, 0, Infinity, -Infinity];
  for (let at = u; at < values.length; at += units) {
    const v = values[at];
    sum += v;
    squares += v * v;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  const centre = sum / n;
  const far = 3 * Math.sqrt(Math.max(0, squares / n - centre * centre));
  const [from, to] = [Math.max(low, centre - far), Math.min(high, centre + far)];
  const room = 0.06 * (to - from) || 1;
  return Number.isFinite(to - from) ? [from - room, to + room] : [-1, 1];
}

/**
 * The gates of a unit: for each row of gamma and beta the z at which y is 0, and the side that
 * passes. Without gamma and beta it is 0.
 * @param {Hidden} layer
 * @param {number} u
 */
function gates(layer, u) {
  return Array.from({ length: layer.affineRows }, (_, r) => {
    const gamma = layer.gamma ? layer.gamma.value[r * layer.units + u] : 1;
    const beta = layer.beta ? layer.beta.value[r * layer.units + u] : 0;
    return { gamma, beta, z: -beta / gamma, up: gamma >= 0 };
  });
}

/**
 * One stage of one unit: a class above the next, the side that the gate closes shaded.
 * @param {Picture} picture
 * @param {{ left: number, right: number, top: number, bottom: number }} box
 * @param {object} what
 * @param {Float64Array[]} what.counts by class
 * @param {[number, number]} what.range
 * @param {{ at: number, up: boolean, colour: string }[]} what.gates
 * @param {boolean} what.after ReLU: what was closed lies at 0
 * @param {Colours} what.colours
 */
function drawStage(picture, { left, right, top, bottom }, { counts, range: [low, high], gates: cuts, after, colours }) {
  const c = picture.context;
  const place = (/** @type {number} */ v) => left + ((Math.min(high, Math.max(low, v)) - low) / (high - low)) * (right - left);
  const [gate] = cuts;
  if (gate && cuts.length === 1) {
    c.fillStyle = colours.soft;
    if (gate.up) c.fillRect(left, top, place(gate.at) - left, bottom - top);
    else c.fillRect(place(gate.at), top, right - place(gate.at), bottom - top);
  }
  const zero = Math.min(BINS - 1, Math.max(0, Math.floor(((0 - low) / (high - low)) * BINS)));
  let most = 0;
  for (const bins of counts) bins.forEach((v, b) => (most = Math.max(most, after && b === zero ? 0 : v)));
  const step = (right - left) / BINS;
  const room = bottom - top - 2;
  counts.forEach((bins, k) => {
    c.beginPath();
    c.moveTo(left, bottom);
    bins.forEach((v, b) => {
      const y = bottom - (most ? Math.min(1, v / most) : 0) * room;
      c.lineTo(left + b * step, y);
      c.lineTo(left + (b + 1) * step, y);
    });
    c.lineTo(right, bottom);
    c.fillStyle = colours.classes[k];
    c.globalAlpha = counts.length > 4 ? 0.08 : 0.28;
    c.fill();
    c.globalAlpha = 1;
    c.strokeStyle = colours.classes[k];
    c.lineWidth = 1;
    c.stroke();
  });
  picture.rule(left, bottom + 0.5, right, bottom + 0.5, colours.rule);
  for (const { at, colour } of cuts) {
    if (at >= low && at <= high) picture.rule(place(at), top, place(at), bottom, colour, 1.75);
  }
  return place;
}

/**
 * All four stages of a unit, one under the other.
 * @param {Picture} picture
 * @param {object} what
 * @param {Measured} what.measured
 * @param {Hidden} what.layer
 * @param {number} what.l
 * @param {number} what.u
 * @param {Axes} what.axes
 * @param {number} what.classes
 * @param {Colours} what.colours
 * @param {boolean} what.large with axes
 * @param {string[]} what.names of the stages
 */
function drawUnit(picture, { measured, layer, l, u, axes, classes, colours, large, names }) {
  picture.begin();
  const { width, height } = picture;
  const left = large ? Math.min(150, Math.max(96, width * 0.2)) : 28;
  const foot = large ? 20 : 3;
  const each = height / 4;
  const cuts = gates(layer, u);
  const colour = (/** @type {number} */ r) => (cuts.length > 1 ? colours.classes[r] : colours.accent);
  STAGES.forEach((stage, s) => {
    const range = s === 0 ? axes.x : axes.z;
    const box = { left, right: width - 4, top: s * each + (large ? 8 : 3), bottom: (s + 1) * each - foot };
    const counts = histograms(measured.stages[l][s], u, layer.units, measured.labels, classes, range, BINS);
    /** @type {{ at: number, up: boolean, colour: string }[]} */
    let shown = [];
    if (stage === "z") shown = cuts.map((g, r) => ({ at: g.z, up: g.up, colour: colour(r) }));
    else if (stage !== "x") shown = [{ at: 0, up: true, colour: colours.accent }];
    const place = drawStage(picture, box, { counts, range, gates: shown, after: stage === "relu", colours });
    const middle = (box.top + box.bottom) / 2;
    if (!large) {
      picture.write(names[s], 0, middle, { colour: colours.quiet, size: 10 });
      return;
    }
    names[s].split("\n").forEach((line, i) => {
      const how = { colour: i ? colours.quiet : colours.ink, size: i ? 11.5 : 13, bold: !i };
      picture.write(line, 0, middle - 8 + 17 * i, how);
    });
    for (const value of ticks(range[0], range[1], Math.max(3, (width - left) / 80))) {
      const how = { colour: colours.quiet, size: 10.5, align: /** @type {const} */ ("center") };
      if (place(value) < width - 12) picture.write(shownNumber(value, 2), place(value), box.bottom + 10, how);
    }
  });
}

/** @param {number} value @param {number} digits */
const shownNumber = (value, digits) => (Math.abs(value) < 1e-12 ? "0" : shown(value, digits));

/** A number with so many places and a true minus. @param {number} value @param {number} places */
const fixed = (value, places) =>
  Number.isFinite(value) ? value.toFixed(places).replace(/^-(0\.?0*)$/, "$1").replace("-", "\u2212") : say("live.not_finite");

/** A share in percent; what is nearly all is not rounded to all. @param {number} share */
const rate = (share) => (share > 0.99 && share < 1 ? `${(Math.floor(share * 1000) / 10).toFixed(1)}%` : percent(share));
