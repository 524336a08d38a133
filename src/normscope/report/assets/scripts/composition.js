// the signal that a batch leaves, (1-r)(1-1/m), beside what was measured
function composition(points) {
  const host = document.getElementById("composition-figure");
  const sliders = document.getElementById("composition-sliders");
  if (!host) return;
  const asked = remembered();
  const within = (text, low, high, otherwise) => {
    const value = Number(text ?? NaN);
    return value >= low && value <= high ? value : otherwise;
  };
  const state = { r: within(asked.r, 0, 1, 0.5), power: within(Math.log2(asked.m), 1, 8, 5) };
  const levels = [...new Set([0, 0.25, 0.5, 0.75, 1, ...points.map((p) => p.r)])].sort((a, b) => a - b);
  const measured = document.getElementById("composition-left");

  function build() {
    const r = slider("r", { low: 0, high: 1, step: 0.05, value: state.r, format: (v) => shown(v, 2) }, (value) => {
      state.r = value;
      draw();
    });
    const m = slider("m", { low: 1, high: 8, step: 1, value: state.power, format: (v) => String(2 ** v) }, (value) => {
      state.power = value;
      draw();
    });
    r.input.setAttribute("aria-label", say("live.r"));
    m.input.setAttribute("aria-label", say("live.m"));
    sliders.replaceChildren(r.row, m.row);
    draw();
  }

  function draw() {
    const m = Math.round(2 ** state.power);
    const left = signalLeft(state.r, m);
    measured.textContent = say("live.left", { r: shown(state.r, 2), m, left: percent(left) });
    measured.dataset.value = left;
    remember({ r: state.r, m });
    canvas(host, 250, say("live.composition_figure"), measured.textContent, (picture, width) => {
      const [from, to, top, bottom] = [40, width - 56, 12, 210];
      const x = scale(1, 8, from, to);
      const y = scale(0, 1, bottom, top);
      for (const v of [0, 0.25, 0.5, 0.75, 1]) {
        picture.append(
          svg("line", { x1: from, x2: to, y1: y(v), y2: y(v), class: "grid" }),
          svg("text", { x: from - 6, y: y(v) + 4, "text-anchor": "end", class: "tick" }, percent(v).replace("0.0", "0")),
        );
      }
      const powers = Array.from({ length: 57 }, (_, i) => 1 + i / 8);
      const curve = (r) => line(powers.map((p) => [x(p), y(signalLeft(r, 2 ** p))]));
      for (const r of levels) {
        picture.append(
          svg("path", { d: curve(r), class: "law" }),
          svg("text", { x: to + 8, y: y(signalLeft(r, 256)) + 4, class: "tick" }, `r = ${shown(r, 2)}`),
        );
      }
      picture.append(svg("path", { d: curve(state.r), class: "curve" }));
      for (const point of points) {
        const power = Math.log2(point.m);
        if (power < 1 || power > 8 || !Number.isFinite(point.measured)) continue;
        const place = { cx: x(power), cy: y(Math.max(0, point.measured)), r: 3.5 };
        const label = `r = ${shown(point.r, 2)}, m = ${point.m}: ${shown(point.measured)}`;
        picture.append(svg("circle", { ...place, class: "measured" }, svg("title", {}, label)));
      }
      picture.append(
        svg("circle", { cx: x(state.power), cy: y(left), r: 6, class: "here" }),
        axis(x, 1, 8, bottom + 2, { from, to, count: 7, format: (p) => String(2 ** Math.round(p)) }),
        svg("text", { x: (from + to) / 2, y: bottom + 36, "text-anchor": "middle", class: "tick" }, say("live.m")),
      );
    });
  }

  build();
  redrawOnResize(host, draw);
  onLanguage(build);
}
