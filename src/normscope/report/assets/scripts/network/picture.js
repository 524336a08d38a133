// Drawing on canvas: sharp on every screen, in the page's colours, both themes.

/** @typedef {{ ink: string, quiet: string, rule: string, paper: string, soft: string, accent: string, train: string, eval: string, classes: string[], rgb: number[][], ground: number[] }} Colours */

/**
 * The page's colours as canvas can use them, for the theme of this moment.
 * @param {HTMLElement} host
 * @returns {Colours}
 */
function readColours(host) {
  const probe = html("span", { hidden: "" });
  host.append(probe);
  const read = (/** @type {string} */ name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const names = [1, 2, 3, 4, 5, 6, 7, 8].map((k) => read(`c${k}`));
  const classes = [...names, read("quiet"), read("ink")];
  const colours = {
    ink: read("ink"),
    quiet: read("quiet"),
    rule: read("rule"),
    paper: read("raised"),
    soft: read("soft"),
    accent: read("accent"),
    train: read("ink"),
    eval: read("c4"),
    classes,
    rgb: classes.map(channels3),
    ground: channels3(read("raised")),
  };
  probe.remove();
  return colours;
}

/** @param {string} colour as "rgb(1, 2, 3)" */
const channels3 = (colour) => (colour.match(/[\d.]+/g) ?? ["0", "0", "0"]).slice(0, 3).map(Number);

const FONT = getComputedStyle(document.body).fontFamily;

/** A canvas whose drawing is in CSS pixels. */
class Picture {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.width = 0;
    this.height = 0;
  }

  /**
   * Read its size, and whether any of it is on the screen. Apart from drawing, because a page that
   * is read and written in turns is laid out again each time.
   */
  look() {
    const box = this.canvas.getBoundingClientRect();
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    return box.width > 0 && box.bottom > 0 && box.top < innerHeight;
  }

  /** Clear, at the size that the page gave it when it was last looked at. */
  begin() {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const [width, height] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, this.width, this.height);
    return this.context;
  }

  /**
   * @param {string} text
   * @param {number} x
   * @param {number} y
   * @param {{ colour: string, size?: number, align?: CanvasTextAlign, bold?: boolean, behind?: string }} how
   */
  write(text, x, y, { colour, size = 11.5, align = "left", bold = false, behind }) {
    const c = this.context;
    c.font = `${bold ? "600 " : ""}${size}px ${FONT}`;
    c.textAlign = align;
    c.textBaseline = "middle";
    if (behind) {
      c.strokeStyle = behind;
      c.lineWidth = 4;
      c.lineJoin = "round";
      c.strokeText(text, x, y);
    }
    c.fillStyle = colour;
    c.fillText(text, x, y);
  }

  /**
   * @param {number} x1
   * @param {number} y1
   * @param {number} x2
   * @param {number} y2
   * @param {string} colour
   * @param {number} [width]
   * @param {number[]} [dash]
   */
  rule(x1, y1, x2, y2, colour, width = 1, dash = []) {
    const c = this.context;
    c.beginPath();
    c.moveTo(x1, y1);
    c.lineTo(x2, y2);
    c.strokeStyle = colour;
    c.lineWidth = width;
    c.setLineDash(dash);
    c.stroke();
    c.setLineDash([]);
  }
}

/**
 * Counts of values in equal bins between low and high; what lies outside is in the end bins.
 * @param {Float64Array} values (n, units)
 * @param {number} unit
 * @param {number} units
 * @param {Int32Array} labels
 * @param {number} classes
 * @param {[number, number]} range
 * @param {number} bins
 * @returns {Float64Array[]} by class, shares of all samples
 */
function histograms(values, unit, units, labels, classes, [low, high], bins) {
  const counts = Array.from({ length: classes }, () => new Float64Array(bins));
  const n = labels.length;
  for (let i = 0; i < n; i++) {
    const at = Math.floor(((values[i * units + unit] - low) / (high - low)) * bins);
    counts[labels[i]][Math.min(bins - 1, Math.max(0, at || 0))] += 1 / n;
  }
  return counts;
}
