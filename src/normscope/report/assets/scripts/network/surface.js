// What the network says of every place, in one mode, with the points on it. Digits have no plane:
// they are shown as tiles, each with what the network takes it for.

const GRID = 60;
const TILES = 100;

/** @type {Float64Array} the places of a grid, row by row from the top */
const PLACES = new Float64Array(GRID * GRID * 2);
for (let i = 0; i < GRID * GRID; i++) {
  PLACES[2 * i] = (((i % GRID) + 0.5) / GRID) * 2 * WIDE - WIDE;
  PLACES[2 * i + 1] = REACH - ((Math.floor(i / GRID) + 0.5) / GRID) * 2 * REACH;
}

/**
 * @typedef {object} Shown
 * @property {Experiment} run
 * @property {Source} source
 * @property {number | null} label that every place is told, if any
 * @property {number} domain that every place is in
 * @property {Measured} measured
 * @property {Colours} colours
 * @property {Set<number> | null} batch samples of the batch whose statistics are used
 * @property {{ x: number, y: number } | null} cursor
 */

class Surface {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.picture = new Picture(canvas);
    this.small = document.createElement("canvas");
    this.small.width = this.small.height = GRID;
    this.ink = /** @type {CanvasRenderingContext2D} */ (this.small.getContext("2d"));
    this.pixels = this.ink.createImageData(GRID, GRID);
    this.told = new Int32Array(GRID * GRID);
    this.domains = new Int32Array(GRID * GRID);
  }

  /** @param {number} v a coordinate of the data; @returns {number} its place across */
  across = (v) => ((v + WIDE) / (2 * WIDE)) * this.picture.width;
  /** @param {number} v */
  down = (v) => ((REACH - v) / (2 * REACH)) * this.picture.height;

  /** @param {Shown} shown */
  draw(shown) {
    const context = this.picture.begin();
    if (shown.run.data.inputs !== 2) return this.drawTiles(shown);
    const { run, source, label, domain, colours } = shown;
    this.domains.fill(domain);
    const labels = label === null ? null : this.told.fill(label);
    const logits = run.net.forward({ x: PLACES, n: GRID * GRID, labels, domains: this.domains }, source);
    this.paint(logits, run.data.classes, colours);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.small, 0, 0, this.picture.width, this.picture.height);
    this.boundaries(logits, run.data.classes, colours);
    this.points(shown);
    if (shown.cursor) this.cross(shown.cursor, colours);
  }

  /**
   * The likeliest class's colour, stronger the surer the network is.
   * @param {Float64Array} logits
   * @param {number} classes
   * @param {Colours} colours
   */
  paint(logits, classes, { rgb, ground }) {
    const { data } = this.pixels;
    for (let i = 0; i < GRID * GRID; i++) {
      const best = argmax(logits, i * classes, classes);
      const top = logits[i * classes + best];
      let sum = 0;
      for (let k = 0; k < classes; k++) sum += Math.exp(logits[i * classes + k] - top);
      const sure = (1 / sum - 1 / classes) / (1 - 1 / classes);
      const strength = Number.isFinite(sure) ? 0.05 + 0.4 * sure : 0;
      for (let c = 0; c < 3; c++) data[4 * i + c] = ground[c] + strength * (rgb[best][c] - ground[c]);
      data[4 * i + 3] = 255;
    }
    this.ink.putImageData(this.pixels, 0, 0);
  }

  /**
   * Lines where two classes are equally likely (marching squares).
   * @param {Float64Array} logits
   * @param {number} classes
   * @param {Colours} colours
   */
  boundaries(logits, classes, colours) {
    const { context, width, height } = this.picture;
    const lead = new Float64Array(GRID * GRID);
    context.beginPath();
    for (let k = 1; k < classes; k++) {
      for (let i = 0; i < GRID * GRID; i++) {
        let rival = -Infinity;
        for (let j = 0; j < classes; j++) if (j !== k) rival = Math.max(rival, logits[i * classes + j]);
        lead[i] = logits[i * classes + k] - rival;
      }
      for (let row = 0; row < GRID - 1; row++) {
        for (let column = 0; column < GRID - 1; column++) {
          const at = row * GRID + column;
          const corners = [at, at + 1, at + GRID + 1, at + GRID];
          /** @type {[number, number][]} */
          const cuts = [];
          for (let side = 0; side < 4; side++) {
            const [a, b] = [corners[side], corners[(side + 1) % 4]];
            if (lead[a] > 0 === lead[b] > 0) continue;
            const part = lead[a] / (lead[a] - lead[b]);
            const x = (a % GRID) + part * ((b % GRID) - (a % GRID));
            const y = Math.floor(a / GRID) + part * (Math.floor(b / GRID) - Math.floor(a / GRID));
            cuts.push([((x + 0.5) / GRID) * width, ((y + 0.5) / GRID) * height]);
          }
          for (let c = 0; c + 1 < cuts.length; c += 2) {
            context.moveTo(...cuts[c]);
            context.lineTo(...cuts[c + 1]);
          }
        }
      }
    }
    context.strokeStyle = colours.ink;
    context.lineWidth = 1.75;
    context.stroke();
  }

  /** @param {Shown} shown */
  points({ run, measured, colours, batch, domain }) {
    const { context } = this.picture;
    const { data } = run;
    const predicted = new Int32Array(data.n).fill(-1);
    measured.picked.forEach((i, at) => (predicted[i] = measured.predicted[at]));
    const size = Math.min(3.4, Math.max(1.9, this.picture.width / 130));
    const marks = Array.from({ length: data.classes }, (_, k) => new Path2D(classMark(k, size)));
    for (let i = 0; i < data.n; i++) {
      const k = data.labels[i];
      const wrong = predicted[i] >= 0 && predicted[i] !== k;
      const other = run.setting.domains > 1 && data.domains[i] !== domain;
      context.save();
      context.translate(this.across(data.x[2 * i]), this.down(data.x[2 * i + 1]));
      const drawn = batch?.has(i);
      context.globalAlpha = other ? 0.3 : batch && !drawn ? 0.5 : 1;
      if (drawn) context.scale(1.35, 1.35);
      context.fillStyle = wrong ? colours.paper : colours.classes[k];
      context.fill(marks[k]);
      context.strokeStyle = wrong ? colours.classes[k] : drawn ? colours.ink : colours.paper;
      context.lineWidth = wrong ? 1.6 : drawn ? 1.3 : 0.6;
      context.stroke(marks[k]);
      context.restore();
    }
  }

  /** @param {{ x: number, y: number }} at @param {Colours} colours */
  cross({ x, y }, colours) {
    const [left, top] = [this.across(x), this.down(y)];
    this.picture.rule(left - 9, top, left + 9, top, colours.ink, 1.5);
    this.picture.rule(left, top - 9, left, top + 9, colours.ink, 1.5);
  }

  /** One row per class, ten images each. @param {Shown} shown */
  drawTiles({ run, measured, colours }) {
    const { context, width, height } = this.picture;
    const { data } = run;
    const predicted = new Int32Array(data.n).fill(-1);
    measured.picked.forEach((i, at) => (predicted[i] = measured.predicted[at]));
    const filled = new Array(data.classes).fill(0);
    const [w, h] = [width / 10, height / 10];
    for (let i = 0, done = 0; i < data.n && done < TILES; i++) {
      const k = data.labels[i];
      if (filled[k] === 10) continue;
      const [x, y] = [filled[k] * w, k * h];
      const wrong = predicted[i] >= 0 && predicted[i] !== k;
      for (let p = 0; p < 64; p++) {
        const dark = (data.x[i * 64 + p] * 6 + 5) / 16;
        if (dark < 0.05) continue;
        context.globalAlpha = dark * (wrong ? 0.55 : 0.9);
        context.fillStyle = wrong ? colours.classes[1] : colours.ink;
        context.fillRect(x + 3 + ((p % 8) * (w - 6)) / 8, y + 3 + (Math.floor(p / 8) * (h - 6)) / 8, (w - 6) / 8 + 0.3, (h - 6) / 8 + 0.3);
      }
      context.globalAlpha = 1;
      if (wrong) {
        const how = { colour: colours.classes[1], size: 13, bold: true, behind: colours.paper };
        this.picture.write(String(predicted[i]), x + w - 10, y + h - 10, how);
      }
      filled[k]++;
      done++;
    }
  }
}
