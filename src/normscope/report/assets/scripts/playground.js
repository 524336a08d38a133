// The worked example as something to move: gamma, beta, the joint switch, the replay of learning.

function playground(lesson) {
  const { learning } = lesson.recoveries.find((r) => r.name === "classification");
  const stage = Object.fromEntries(lesson.stages.map((s) => [s.name, s]));
  const input = stage.input.classes.map((c) => c.values);
  const K = input.length;
  const ones = () => new Array(K).fill(1);
  const zeros = () => new Array(K).fill(0);
  const presets = { plain: { gamma: ones(), beta: zeros() } };
  for (const [name, from] of [["given", "scaled_shifted"], ["learned", "learned_classification"], ["identity", "identity"]]) {
    const classes = stage[from]?.classes ?? [];
    if (classes.length === K && classes.every((c) => Number.isFinite(c.gamma) && Number.isFinite(c.beta))) {
      presets[name] = { gamma: classes.map((c) => c.gamma), beta: classes.map((c) => c.beta) };
    }
  }
  const whole = moments(input.flat());
  presets.jointIdentity = {
    gamma: ones().map(() => Math.sqrt(whole.variance + lesson.eps)),
    beta: zeros().map(() => whole.mean),
  };
  const extreme = (name) =>
    Math.max(
      3,
      ...Object.values(presets).flatMap((p) => p[name].map(Math.abs)),
      ...learning.flatMap((l) => l[name].flat().map(Math.abs)),
    );
  const reach = { gamma: Math.ceil(extreme("gamma") * 1.2), beta: Math.ceil(extreme("beta") * 1.1) };

  const state = { mode: "per_class", ...structuredClone(presets.given ?? presets.plain) };
  const byId = (id) => document.getElementById(id);
  const className = (k) => say("live.class", { k: k + 1 });
  let controls = [];
  let domain = null;

  const shared = () => state.mode === "joint";
  const effective = () =>
    shared() ? { gamma: ones().map(() => state.gamma[0]), beta: zeros().map(() => state.beta[0]) } : state;
  const measured = (classes) => ({ classes, cuts: bestCuts(classes), eta2: eta2(classes) });
  const start = measured(input);
  const now = () => {
    const { z, y } = transform(input, { mode: state.mode, eps: lesson.eps, ...effective() });
    return { input: start, z: measured(z), y: measured(y) };
  };

  function buildSliders() {
    controls = [];
    const groups = (shared() ? [0] : input.map((_, k) => k)).map((k) => {
      const title = shared()
        ? html("legend", {}, say("live.all_classes"))
        : html("legend", {}, badge(k), className(k));
      const make = (name, symbol) => {
        const control = slider(
          symbol,
          { low: -reach[name], high: reach[name], step: reach[name] > 20 ? 0.1 : 0.05, value: state[name][k] },
          (value) => {
            state[name] = state[name].map((v, j) => (shared() || j === k ? value : v));
            update();
          },
        );
        control.input.setAttribute("aria-label", shared() ? symbol : `${className(k)} ${symbol}`);
        control.input.dataset.parameter = name;
        control.input.dataset.class = k;
        controls.push({ control, name, k });
        return control.row;
      };
      return html("fieldset", { class: "pair" }, title, make("gamma", "γ"), make("beta", "β"));
    });
    byId("play-sliders").replaceChildren(...groups);
  }

  const badge = (k) =>
    svg(
      "svg",
      { viewBox: "-8 -8 16 16", width: 14, height: 14, "aria-hidden": "true", class: "badge" },
      svg("path", { d: classMark(k, 5), fill: classColour(k) }),
    );

  function putSliders() {
    for (const { control, name, k } of controls) control.put(state[name][k]);
  }

  // keeps the y axis still while a slider moves, until the classes leave it or get lost in it
  function steady(low, high) {
    const [from, to] = [Math.min(low, -0.5), Math.max(high, 0.5)];
    const fits = domain && from >= domain[0] && to <= domain[1];
    if (!fits || to - from < 0.3 * (domain[1] - domain[0])) {
      const room = 0.08 * (to - from);
      domain = [from - room, to + room];
    }
    return domain;
  }

  // all values, and of each bell the part that can be seen
  function extent(classes) {
    const parts = classes.map(moments);
    const low = Math.min(...parts.map((m) => Math.min(m.low, m.mean - 2.6 * Math.sqrt(m.variance))));
    const high = Math.max(...parts.map((m) => Math.max(m.high, m.mean + 2.6 * Math.sqrt(m.variance))));
    const room = 0.04 * (high - low || 1);
    return [low - room, high + room];
  }

  function paint(stages) {
    // a lane for each class; where they are too many, one for all
    const lane = K <= 6 ? 15 : K <= 12 ? 10 : 0;
    const panel = 26 + 64 + (lane ? K * lane : 18) + 50;
    const host = byId("play-figure");
    canvas(host, panel * 3, say("live.figure"), summary(stages), (picture, width) => {
      const names = ["live.stage_input", shared() ? "live.stage_joint" : "live.stage_own", "live.stage_scaled"];
      [stages.input, stages.z, stages.y].forEach((stage, row) => {
        let [low, high] = extent(stage.classes);
        if (row === 2) [low, high] = steady(low, high);
        const group = svg("g", { transform: `translate(0,${row * panel})` });
        paintPanel(group, stage, { low, high, width, lane, panel, gate: row === 2, name: say(names[row]) });
        picture.append(group);
      });
    });
  }

  function paintPanel(group, { classes, cuts, eta2: share }, { low, high, width, lane, panel, gate, name }) {
    const [left, right] = [8, width - 8];
    const place = scale(low, high, left, right);
    const ground = 26 + 64;
    const bottom = panel - 50;
    const verdict = say("live.panel", { right: cuts.right, of: cuts.of, eta2: shownShare(share, 3) });
    group.append(
      svg("text", { x: left, y: 14, class: "panel-title" }, name),
      svg("text", { x: right, y: 14, class: "panel-value", "text-anchor": "end" }, verdict),
    );
    if (gate) {
      group.append(
        svg("rect", { x: left, y: 22, width: Math.max(0, place(0) - left), height: bottom - 22, class: "closed" }),
        svg("line", { x1: place(0), x2: place(0), y1: 22, y2: bottom, class: "gate" }),
        svg("text", { x: place(0) + 5, y: 32, class: "tick gate-name" }, say("live.gate")),
      );
    }
    classes.forEach((values, k) => {
      const { mean: centre, variance: spread, low: least, high: most } = moments(values);
      const deviation = Math.max(Math.sqrt(spread), (high - low) * 0.004);
      const bell = [];
      for (let i = -32; i <= 32; i++) {
        const at = centre + (i / 9) * deviation;
        if (at >= low && at <= high) bell.push([place(at), ground - 50 * Math.exp(-((i / 9) ** 2) / 2)]);
      }
      if (bell.length) {
        const foot = `L${bell.at(-1)[0]},${ground}L${bell[0][0]},${ground}z`;
        group.append(
          svg("path", { d: line(bell) + foot, fill: classColour(k), opacity: Math.min(0.12, 0.5 / K) }),
          svg("path", { d: line(bell), stroke: classColour(k), "stroke-dasharray": classDash(k), class: "bell" }),
        );
      }
      const y = ground + 10 + k * lane;
      group.append(
        svg("line", { x1: place(least), x2: place(most), y1: y, y2: y, stroke: classColour(k), class: "range" }),
      );
      for (const value of values.length > 200 ? values.slice(0, 200) : values) {
        const open = !gate || value > 0;
        group.append(
          svg("path", {
            d: classMark(k, lane === 15 ? 4.5 : 3.5),
            transform: `translate(${place(value).toFixed(2)},${y})`,
            fill: open ? classColour(k) : "var(--paper)",
            stroke: classColour(k),
            class: "dot",
          }),
        );
      }
    });
    for (const cut of cuts.cuts) {
      group.append(svg("path", { d: `M${place(cut)},${ground - 56}V${bottom}`, class: "cut" }));
    }
    group.append(axis(place, low, high, bottom + 2, { from: left, to: right, count: Math.max(3, width / 90) }));
  }

  // one sentence on what the present setting shows
  function summary(stages) {
    const { classes, cuts } = stages.y;
    const count = { right: cuts.right, of: cuts.of };
    if (shared()) return say(state.gamma[0] === 0 ? "live.says_flat" : "live.says_joint", count);
    const [first, ...others] = classes.map((values) => values.toSorted((a, b) => a - b));
    const same = others.every((values) =>
      values.every((v, i) => Math.abs(v - first[i]) < 1e-9 * (1 + Math.abs(v))),
    );
    if (same) return say("live.says_same", count);
    if (cuts.right === cuts.of) return say("live.says_apart", count);
    return say("live.says_overlap", count);
  }

  function numbers(stages) {
    const cell = (value, format = shown) => html("td", { "data-value": value }, format(value));
    const { gamma, beta } = effective();
    // what is rounding beside the values is 0
    const size = Math.max(...stages.y.classes.flat().map(Math.abs));
    const unrounded = (v) => shown(Math.abs(v) < 1e-12 * size ? 0 : v);
    const rows = stages.y.classes.map((values, k) => {
      const m = moments(values);
      return html(
        "tr",
        {},
        html("th", { scope: "row" }, badge(k), className(k)),
        ...[gamma[k], beta[k], m.mean, m.variance, m.low, m.high].map((v) => cell(v, unrounded)),
        cell(positiveShare(values), percent),
      );
    });
    byId("play-classes").replaceChildren(...rows);
    const named = { input: stages.input, normalised: stages.z, scaled_shifted: stages.y };
    byId("play-stages").replaceChildren(
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

  function update() {
    const stages = now();
    paint(stages);
    numbers(stages);
    byId("play-says").textContent = summary(stages);
    byId("play-label").hidden = shared();
    for (const button of document.querySelectorAll("[data-preset]")) {
      const preset = presetOf(button.dataset.preset);
      const on = preset && ["gamma", "beta"].every((n) => preset[n].every((v, k) => v === effective()[n][k]));
      button.setAttribute("aria-pressed", String(Boolean(on)));
      button.disabled = !preset;
    }
    remember({
      mode: state.mode,
      g: state.gamma.map((v) => +v.toFixed(6)).join(","),
      b: state.beta.map((v) => +v.toFixed(6)).join(","),
    });
  }

  // gamma and beta by class need the switch at "per class"; the joint layer has one pair
  function presetOf(name) {
    if (!shared()) return presets[name];
    return { plain: presets.plain, identity: presets.jointIdentity }[name];
  }

  function setMode(mode) {
    state.mode = mode;
    if (shared()) Object.assign(state, structuredClone(presets.plain));
    domain = null;
    for (const radio of document.querySelectorAll("[name=mode]")) radio.checked = radio.value === mode;
    buildSliders();
    update();
  }

  function set(gamma, beta) {
    if (shared() && new Set([...gamma, ...beta]).size > 2) setMode("per_class");
    Object.assign(state, { gamma: [...gamma], beta: [...beta] });
    putSliders();
    update();
  }

  for (const radio of document.querySelectorAll("[name=mode]")) {
    radio.addEventListener("change", () => setMode(radio.value));
  }
  for (const button of document.querySelectorAll("[data-preset]")) {
    button.addEventListener("click", () => {
      const preset = presetOf(button.dataset.preset);
      domain = null;
      set(preset.gamma, preset.beta);
    });
  }

  const asked = remembered();
  const list = (text) => (text ?? "").split(",").map(Number);
  if (asked.mode === "joint" || asked.mode === "per_class") state.mode = asked.mode;
  for (const [key, name] of [["g", "gamma"], ["b", "beta"]]) {
    const values = list(asked[key]);
    if (values.length === K && values.every((v) => Number.isFinite(v) && Math.abs(v) <= reach[name])) {
      state[name] = values;
    }
  }
  for (const radio of document.querySelectorAll("[name=mode]")) radio.checked = radio.value === state.mode;
  buildSliders();
  redrawOnResize(byId("play-figure"), update);
  replay(learning, set);
  composition(lesson.composition);
  return () => {
    buildSliders();
    update();
  };
}
