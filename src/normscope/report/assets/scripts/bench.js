// The playground: four number lines, x, z, y and max(0, y), and what moves them beside.

function bench(example) {
  const byId = (id) => document.getElementById(id);
  const host = byId("play-figure");
  const picture = svg("svg", { width: "100%", role: "group" });
  const [title, ground] = [svg("title"), svg("g")];
  let frozen = null;
  let visible = 3;
  const points = pointHandles(example, picture, {
    axisChanges(allowed) {
      frozen = allowed ? null : axes(example.stages());
      if (allowed) paint();
    },
  });
  picture.append(title, ground, points.layer);
  host.replaceChildren(picture);

  // z, y and max(0, y) share an axis; x joins where y is as wide as x
  function axes(stages) {
    if (frozen) return frozen;
    const output = standardAxis([...stages.z.classes.flat(), ...stages.y.classes.flat()]);
    const input = inputAxis(stages.x.classes.flat());
    const one = sharedAxis(input, output);
    return { x: one ?? input, out: one ?? output };
  }

  function gates() {
    const { gamma, beta } = example.affine();
    const places = gamma.map((g, k) => -beta[k] / g).filter(Number.isFinite);
    return example.shared() ? places.slice(0, 1) : [...new Set(places.map((v) => v.toPrecision(6)))].map(Number);
  }

  const verdict = ({ cuts }) => say("live.count", { right: cuts.right, of: cuts.of });

  function paint(stages = example.stages()) {
    const width = Math.max(260, Math.round(host.clientWidth || 640));
    const { x, out } = axes(stages);
    const { gamma } = example.affine();
    const below = [out[0], 0];
    const rows = [
      { key: "x", axis: x, name: say("live.stage_input") },
      {
        key: "z",
        axis: out,
        name: say(example.shared() ? "live.stage_joint" : "live.stage_own"),
        gate: example.shared() ? gates() : [],
        closed: example.shared() && gamma[0] !== 0 ? (gamma[0] > 0 ? [out[0], gates()[0]] : [gates()[0], out[1]]) : null,
      },
      { key: "y", axis: out, name: say("live.stage_scaled"), gate: [0], closed: below, open: (v) => v > 0 },
      { key: "a", axis: out, name: say("live.stage_relu"), bells: false, open: (v) => v > 0 },
    ].map((row) => ({
      ...row,
      classes: stages[row.key].classes,
      cuts: stages[row.key].cuts.cuts,
      verdict: verdict(stages[row.key]),
      current: row.key === example.focus,
    }));
    const height = tracksHeight(rows);
    fill(picture, { viewBox: `0 0 ${width} ${height}`, height, "aria-label": say("live.figure") }, []);
    title.textContent = say("live.figure");
    const fresh = svg("g");
    const laid = paintTracks(fresh, width, rows, { visible });
    ground.replaceChildren(...fresh.childNodes);
    points.put(laid[0]);
    points.lanes(ground, width);
  }

  // one sentence on what the present setting shows
  function summary(stages) {
    const { classes, cuts } = stages.y;
    const count = { right: cuts.right, of: cuts.of };
    if (example.shared()) {
      if (example.gamma[0] === 0) return say("live.says_flat", count);
      const kept = cuts.right === stages.x.cuts.right;
      return say(kept ? "live.says_joint" : "live.says_flat", count);
    }
    const [first, ...others] = classes.map((values) => values.toSorted((a, b) => a - b));
    const same = others.every(
      (values) => values.length === first.length && values.every((v, i) => Math.abs(v - first[i]) < 1e-9 * (1 + Math.abs(v))),
    );
    if (same) return say("live.says_same", count);
    return say(cuts.right === cuts.of ? "live.says_apart" : "live.says_overlap", count);
  }

  function tell(stages, text) {
    const { cuts } = stages[example.focus] ?? stages.y;
    byId("play-score").textContent = say("live.count", { right: cuts.right, of: cuts.of });
    byId("play-score").dataset.value = cuts.accuracy;
    byId("play-score").className = cuts.right === cuts.of ? "score good" : "score warn";
    byId("play-says").textContent = text ?? summary(stages);
    byId("play-label").hidden = example.shared();
  }
  example.tell = (text) => tell(example.stages(), text);

  const sliders = settingSliders(example, byId("play-sliders"), points);
  function update() {
    const stages = example.stages();
    paint(stages);
    tell(stages);
    benchNumbers(example, stages);
    sliders.put();
    for (const radio of document.querySelectorAll("[name=mode]")) radio.checked = radio.value === example.mode;
    for (const button of document.querySelectorAll("[data-preset]")) {
      button.hidden = (button.dataset.mode ?? example.mode) !== example.mode;
      const { gamma, beta } = example.preset(button.dataset.preset);
      const same = (a, b) => a.every((v, k) => Math.abs(v - b[k]) <= 1e-9 * (1 + Math.abs(v)));
      const now = example.affine();
      button.setAttribute("aria-pressed", String(!button.hidden && same(now.gamma, gamma) && same(now.beta, beta)));
    }
    rememberExample(example);
  }

  // the values travel from line to line
  const player = playing(byId("play-run"), (share) => {
    visible = 3 * share;
    paint();
  }, { milliseconds: 3200 });

  for (const radio of document.querySelectorAll("[name=mode]")) {
    radio.addEventListener("change", () => example.set({ mode: radio.value, focus: "y", ...(radio.value === "joint" ? example.affine() : {}) }));
  }
  for (const button of document.querySelectorAll("[data-preset]")) {
    button.addEventListener("click", () => example.set({ ...example.preset(button.dataset.preset), focus: "y" }));
  }
  byId("play-restore").addEventListener("click", () => example.restore());
  byId("play-class").addEventListener("click", () => {
    if (example.classes.length >= MOST_CLASSES) return;
    const all = moments(example.classes.flat());
    const room = (all.high - all.low) / 2 || 1;
    const like = example.classes[0].map((v) => v - mean(example.classes[0]) + all.high + room);
    example.set({ classes: [...example.classes, like.map((v) => Number(v.toPrecision(6)))] });
  });
  example.watch(update);
  redrawOnResize(host, () => paint());
  return { update, player };
}

// what the tables below the picture say
function benchNumbers(example, stages) {
  const cell = (value, format = shown) => html("td", { "data-value": value }, format(value));
  const { gamma, beta } = example.affine();
  // what is rounding beside the values is 0
  const size = Math.max(...stages.y.classes.flat().map(Math.abs));
  const unrounded = (v) => shown(Math.abs(v) < 1e-12 * size ? 0 : v);
  document.getElementById("play-classes").replaceChildren(
    ...stages.y.classes.map((values, k) => {
      const m = moments(values);
      return html(
        "tr",
        {},
        html("th", { scope: "row" }, badge(k), say("live.class", { k: k + 1 })),
        ...[gamma[k], beta[k], m.mean, m.variance, m.low, m.high].map((v) => cell(v, unrounded)),
        cell(positiveShare(values), percent),
      );
    }),
  );
  const named = { input: stages.x, normalised: stages.z, scaled_shifted: stages.y, relu: stages.a };
  document.getElementById("play-stages").replaceChildren(
    ...Object.entries(named).map(([name, { cuts, eta2: share }]) =>
      html(
        "tr",
        { "data-stage": name },
        html("th", { scope: "row" }, say(`live.${name}`)),
        html("td", { "data-value": cuts.accuracy }, `${cuts.right}/${cuts.of}`),
        html("td", { class: "cuts" }, cuts.cuts.map((c) => shown(c)).join(", ") || "-"),
        cell(share, (v) => shownShare(v, 4)),
      ),
    ),
  );
}
