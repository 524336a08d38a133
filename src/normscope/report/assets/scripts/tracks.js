// Number lines below one another: every value is connected with where it goes.

const HEAD = 24;
const BELL = 34;
const FOOT = 30;
const laneOf = (K) => (K <= 4 ? 13 : K <= 8 ? 9 : 0);
const bellOf = (row) => (row.bells === false ? 4 : BELL);
const trackHeight = (row) => HEAD + bellOf(row) + Math.max(14, row.classes.length * laneOf(row.classes.length)) + FOOT;
const tracksHeight = (rows) => rows.reduce((sum, row) => sum + trackHeight(row), 0);

// steps in which the end of an axis grows, so that it stands still while a value moves a little
const STEPS = [1, 1.5, 2, 3, 5, 8, 12, 20, 30, 50, 80];
function reach(value) {
  if (!(value > 0) || !Number.isFinite(value)) return 1;
  const power = 10 ** (Math.floor(Math.log10(value)) - 1);
  return power * STEPS.find((s) => s * power >= value * 1.04 && s >= 10) || power * 120;
}

// the axis of standardised values: at least from -2 to 2
function standardAxis(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return [low < -1.9 ? -reach(-low) : -2, high > 1.9 ? reach(high) : 2];
}

// the axis of the input: the values and room at both ends to drag them to
function inputAxis(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = 0.12 * (high - low || 1);
  const step = 10 ** Math.floor(Math.log10(high - low || 1));
  return [Math.floor((low - room) / step) * step, Math.ceil((high + room) / step) * step];
}

// one axis for both where the output is as wide as the input and in the same place
function sharedAxis(input, output) {
  const [low, high] = [Math.max(input[0], output[0]), Math.min(input[1], output[1])];
  if (high - low < 0.6 * (input[1] - input[0])) return null;
  return [Math.min(input[0], output[0]), Math.max(input[1], output[1])];
}

const badge = (k) =>
  svg(
    "svg",
    { viewBox: "-8 -8 16 16", width: 14, height: 14, "aria-hidden": "true", class: "badge" },
    svg("path", { d: classMark(k, 5), fill: classColour(k) }),
  );

function bellCurve(values, { low, high }, place, ground) {
  const { mean: centre, variance: spread } = moments(values);
  const deviation = Math.max(Math.sqrt(spread), (high - low) * 0.004);
  const bell = [];
  for (let i = -30; i <= 30; i++) {
    const at = centre + (i / 10) * deviation;
    if (at >= low && at <= high) bell.push([place(at), ground - (BELL - 6) * Math.exp(-((i / 10) ** 2) / 2)]);
  }
  return bell;
}

// rows: { name, classes, axis: [low, high], verdict, cuts, closed: [from, to] | null, gate, current,
//         ghosts, marks, open(value), bells }; gives where each value stands
function paintTracks(layer, width, rows, { visible = rows.length - 1 } = {}) {
  const K = rows[0].classes.length;
  const lane = laneOf(K);
  const size = lane < 13 || width < 360 ? 3.4 : 4.6;
  const [left, right] = [10, width - 10];
  const laid = rows.map((row, r) => {
    const [low, high] = row.axis;
    const place = scale(low, high, left, right);
    const top = tracksHeight(rows.slice(0, r));
    const ground = top + HEAD + bellOf(row);
    return { ...row, low, high, place, top, ground, y: (k) => ground + 8 + k * lane, bottom: top + trackHeight(row) - FOOT };
  });
  const links = svg("g", { class: "links" });
  layer.append(links);
  laid.forEach((row, r) => {
    const group = svg("g", { class: row.current ? "number-track current" : "number-track", "data-row": row.key });
    layer.append(group);
    paintTrack(group, row, { left, right, size, shown: r <= visible, above: laid[r - 1] });
    if (r === 0) return;
    const before = laid[r - 1];
    row.classes.forEach((values, k) => {
      if (values.length > 60) return;
      values.forEach((value, i) => {
        const part = Math.min(1, Math.max(0, visible - (r - 1)));
        if (part === 0) return;
        const from = [before.place(before.classes[k][i]), before.y(k)];
        const to = [row.place(value), row.y(k)];
        const end = from.map((v, j) => v + part * (to[j] - v));
        links.append(svg("path", { d: line([from, end]), stroke: classColour(k), class: "link" }));
        if (part < 1) group.append(mark(k, end, size, true));
      });
    });
  });
  return laid;
}

const mark = (k, [x, y], size, open) =>
  svg("path", {
    d: classMark(k, size),
    transform: `translate(${x.toFixed(2)},${y.toFixed(2)})`,
    fill: open ? classColour(k) : "var(--paper)",
    stroke: classColour(k),
    class: "dot",
  });

// about how wide a text of 13 px is
const textWidth = (text) => [...text].reduce((sum, sign) => sum + (sign > "\u2e7f" ? 13.5 : 7.6), 0);

function paintTrack(group, row, { left, right, size, shown: values, above }) {
  const { low, high, place, top, ground, bottom } = row;
  const same = above && above.low === low && above.high === high;
  const titles = [svg("tspan", { class: "panel-title" }, row.name)];
  const verdict = values ? row.verdict ?? "" : "";
  const room = right - left - textWidth(row.name) - textWidth(verdict) - 24;
  if (same && room > textWidth(say("live.same_axis"))) titles.push(svg("tspan", { class: "tick", dx: 8 }, say("live.same_axis")));
  group.append(
    svg("text", { x: left, y: top + 15 }, ...titles),
    svg("text", { x: right, y: top + 15, class: "panel-value", "text-anchor": "end" }, verdict),
  );
  if (row.closed) {
    const [from, to] = row.closed.map((v) => Math.min(right, Math.max(left, place(v))));
    group.append(svg("rect", { x: from, y: top + HEAD, width: Math.max(0, to - from), height: bottom - top - HEAD, class: "closed" }));
  }
  for (const at of row.gate ?? []) {
    if (at < low || at > high) continue;
    const x = place(at);
    group.append(svg("line", { x1: x, x2: x, y1: top + HEAD, y2: bottom, class: "gate" }));
    if (right - left < 340) continue; // no room for its name
    const flip = x > right - 90;
    group.append(
      svg("text", { x: x + (flip ? -5 : 5), y: top + HEAD + 10, class: "tick gate-name", "text-anchor": flip ? "end" : "start" }, say("live.gate")),
    );
  }
  row.classes.forEach((list, k) => {
    const y = row.y(k);
    group.append(svg("line", { x1: left, x2: right, y1: y, y2: y, class: "lane-line" }));
    if (!values || !list.length) return;
    const { low: least, high: most } = moments(list);
    if (row.bells !== false) {
      const bell = bellCurve(list, row, place, ground);
      if (bell.length > 1) {
        const foot = `L${bell.at(-1)[0]},${ground}L${bell[0][0]},${ground}z`;
        group.append(
          svg("path", { d: line(bell) + foot, fill: classColour(k), opacity: Math.min(0.14, 0.5 / row.classes.length) }),
          svg("path", { d: line(bell), stroke: classColour(k), "stroke-dasharray": classDash(k), class: "bell" }),
        );
      }
    }
    group.append(svg("line", { x1: place(least), x2: place(most), y1: y, y2: y, stroke: classColour(k), class: "range" }));
    for (const ghost of row.ghosts?.[k] ?? []) {
      group.append(svg("path", { d: classMark(k, size + 2), transform: `translate(${place(ghost).toFixed(2)},${y})`, stroke: classColour(k), class: "ghost" }));
    }
    if (row.marks?.[k] !== undefined) {
      const x = place(row.marks[k]);
      group.append(svg("line", { x1: x, x2: x, y1: top + HEAD, y2: bottom, stroke: classColour(k), class: "template" }));
    }
    for (const value of list.slice(0, 200)) {
      group.append(mark(k, [place(value), y], size, row.open ? row.open(value, k) : true));
    }
  });
  if (values) {
    for (const cut of row.cuts ?? []) {
      if (cut >= low && cut <= high) group.append(svg("path", { d: `M${place(cut)},${top + HEAD}V${bottom}`, class: "cut" }));
    }
  }
  group.append(axis(place, low, high, bottom + 2, { from: left, to: right, count: Math.max(3, (right - left) / 90) }));
}
