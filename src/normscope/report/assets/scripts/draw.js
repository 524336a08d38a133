// Small SVG and HTML helpers; text enters only as text nodes, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);
const html = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

// round values between low and high, about `count` of them
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const far = (s) => Math.abs(Math.log((s * power) / raw));
  const step = power * [1, 2, 5, 10].reduce((best, s) => (far(s) < far(best) ? s : best));
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    values.push(Math.abs(i) < 1e-12 ? 0 : i * step);
  }
  return values;
}

// a number as people read it: few digits, a true minus, "-" where there is none
function shown(value, digits = 3) {
  if (value === null || value === undefined) return "-";
  if (!Number.isFinite(value)) return say("live.not_finite");
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 10 ** -digits)) {
    return value.toExponential(2).replaceAll("-", "\u2212");
  }
  return value.toFixed(digits).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "").replace("-", "\u2212");
}

// a share of variance that is rounding is none
const shownShare = (share, digits) => shown(share < 1e-9 ? 0 : share, digits);

const percent = (share) =>
  Number.isFinite(share) ? `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}%` : "-";

const MARKS = [
  (s) => `M${-s},0a${s},${s} 0 1,0 ${2 * s},0a${s},${s} 0 1,0 ${-2 * s},0z`,
  (s) => `M${-s * 0.9},${-s * 0.9}h${s * 1.8}v${s * 1.8}h${-s * 1.8}z`,
  (s) => `M0,${-s * 1.2}L${s * 1.1},${s * 0.8}H${-s * 1.1}z`,
  (s) => `M0,${-s * 1.3}L${s * 1.2},0L0,${s * 1.3}L${-s * 1.2},0z`,
  (s) => `M0,${s * 1.2}L${s * 1.1},${-s * 0.8}H${-s * 1.1}z`,
];
const DASHES = ["none", "6 3", "2 2.5", "8 3 2 3", "4 2"];

const classColour = (k) => `var(--c${(k % 8) + 1})`;
const classDash = (k) => DASHES[k % DASHES.length];
const classMark = (k, size) => MARKS[k % MARKS.length](size);

const line = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)},${y.toFixed(2)}`).join("");

function scale(low, high, from, to) {
  const span = high > low ? high - low : 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

// a horizontal axis with round ticks, and what it measures at its left end
function axis(place, low, high, y, { from, to, count, name = "", format = shown }) {
  const marks = ticks(low, high, count).flatMap((value) => [
    svg("line", { x1: place(value), x2: place(value), y1: y, y2: y + 4, class: "axis" }),
    svg("text", { x: place(value), y: y + 16, "text-anchor": "middle", class: "tick" }, format(value)),
  ]);
  return svg(
    "g",
    {},
    svg("line", { x1: from, x2: to, y1: y, y2: y, class: "axis" }),
    ...marks,
    name ? svg("text", { x: from - 10, y: y + 4, "text-anchor": "end", class: "tick name" }, name) : null,
  );
}

// the picture of one figure: its size follows the column, its text keeps its size
function canvas(host, height, title, description, paint) {
  const width = Math.max(260, Math.round(host.clientWidth || 640));
  const labels = [svg("title", {}, title), svg("desc", {}, description)];
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width: "100%", height, role: "img", "aria-label": title },
    ...labels,
  );
  paint(picture, width);
  host.replaceChildren(picture);
}

// paints when the column has a width, again when the width changes
function redrawOnResize(host, draw) {
  let last = 0;
  new ResizeObserver(() => {
    if (host.clientWidth && host.clientWidth !== last) {
      last = host.clientWidth;
      draw();
    }
  }).observe(host);
}

// a labelled native range input whose output shows the exact value, also between its steps
function slider(label, { low, high, step, value, format = shown }, changed) {
  const input = html("input", { type: "range", min: low, max: high, step });
  const output = html("output", {});
  const put = (exact) => {
    input.value = exact;
    output.textContent = format(exact);
    output.dataset.value = exact;
    input.setAttribute("aria-valuetext", format(exact));
  };
  put(value);
  input.addEventListener("input", () => {
    put(Number(input.value));
    changed(Number(input.value));
  });
  return { row: html("label", { class: "slider" }, label, input, output), put, input };
}
