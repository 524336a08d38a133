// Points of one's own: drawn, dragged and removed on a surface, with the pointer or with keys.

/**
 * @typedef {object} Editor
 * @property {() => Point[] | null} points null where the data are no points of a plane
 * @property {() => number} brush the class of a new point, -1 removes
 * @property {(points: Point[]) => void} edit
 * @property {(at: { x: number, y: number } | null) => void} mark show a cross there
 */

const STRIDE = 0.12; // of an arrow key
const NEAR = 0.3; // how far a key reaches

/** The point, moved into the picture. @param {Point} point @returns {Point} */
const clip = ({ x, y, label }) => ({
  x: Math.min(WIDE, Math.max(-WIDE, x)),
  y: Math.min(REACH, Math.max(-REACH, y)),
  label,
});

/**
 * The place of the nearest point within reach, -1 for none.
 * @param {Point[]} points
 * @param {number} x
 * @param {number} y
 * @param {number} within
 */
function nearest(points, x, y, within) {
  let best = -1;
  let least = within;
  points.forEach((p, i) => {
    const far = Math.hypot(p.x - x, p.y - y);
    if (far < least) [best, least] = [i, far];
  });
  return best;
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Editor} editor
 */
function editable(canvas, { points, brush, edit, mark }) {
  let held = -1;
  /** @type {{ x: number, y: number } | null} */
  let cursor = null;
  const put = (/** @type {typeof cursor} */ at) => {
    cursor = at;
    mark(at);
  };
  const place = (/** @type {PointerEvent} */ event) => {
    const box = canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 2 * WIDE - WIDE;
    const y = REACH - ((event.clientY - box.top) / box.height) * 2 * REACH;
    return { x, y, within: (12 / box.width) * 2 * WIDE };
  };

  /** Add a point of the class, or with -1 remove the nearest. */
  function apply(/** @type {Point[]} */ all, /** @type {number} */ label, x = 0, y = 0, within = NEAR) {
    if (label >= 0) return edit([...all, { x, y, label }]);
    const at = nearest(all, x, y, within);
    if (at >= 0) edit(all.filter((_, i) => i !== at));
  }

  canvas.addEventListener("pointerdown", (event) => {
    const all = points();
    if (!all || event.button !== 0) return;
    const { x, y, within } = place(event);
    if (cursor) put(null);
    held = brush() >= 0 ? nearest(all, x, y, within) : -1;
    if (held < 0) apply(all, brush(), x, y, within);
    else canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const all = held < 0 ? null : points();
    if (!all) return;
    const { x, y } = place(event);
    edit(all.map((p, i) => (i === held ? { ...p, x, y } : p)));
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (held = -1));

  canvas.addEventListener("keydown", (event) => {
    const all = points();
    if (!all) return;
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (move) {
      const [x, y] = [(cursor?.x ?? 0) + STRIDE * move[0], (cursor?.y ?? 0) + STRIDE * move[1]];
      put(clip({ x, y, label: 0 }));
    } else if (event.key === "Enter" && cursor) apply(all, brush(), cursor.x, cursor.y);
    else if ((event.key === "Delete" || event.key === "Backspace") && cursor) apply(all, -1, cursor.x, cursor.y);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("blur", () => cursor && put(null));
}
