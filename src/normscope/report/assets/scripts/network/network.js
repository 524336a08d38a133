// The live network: controls, transport, pictures. Starts the part of the page whose id is "net".

const FRESH = ["data", "points", "hidden", "norm", "shared", "domains", "seed"]; // begin a new run

/**
 * @param {{ lessons: Lesson[], digits: { pixels: string, labels: string }, first: string }} config
 */
function network(config) {
  const host = /** @type {HTMLElement} */ (document.getElementById("net"));
  const find = (/** @type {string} */ role) => /** @type {any} */ (host.querySelector(`[data-net="${role}"]`));
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  let setting = structuredClone(DEFAULTS);
  /** @type {Lesson | null} */
  let lesson = null;
  let run = new Experiment(setting, null);
  let history = new Recording();
  let playing = false;
  let until = 0; // a lesson stops at its end once
  let comparing = false; // the lesson's other run
  let replayable = true; // whether setting and steps alone lead to where the run stands
  let chosen = { l: 0, u: 0 };
  let touched = false; // whether the reader chose it
  /** @type {View} */
  const view = { stride: 3, mode: "train", told: { train: 0, eval: null }, domain: 0, brush: 0 };
  /** @type {{ x: number, y: number } | null} */
  let cursor = null;
  let colours = readColours(host);
  /** @type {{ train: Measured, eval: Measured }} */
  let measured;

  const surfaces = { train: new Surface(find("surface-train")), eval: new Surface(find("surface-eval")) };
  const picture = (/** @type {string} */ role) => new Picture(find(role));
  const charts = {
    accuracy: picture("accuracy"),
    loss: picture("loss"),
    detail: picture("detail"),
    affine: picture("affine"),
    mean: picture("mean"),
    deviation: picture("deviation"),
  };
  /** @type {{ picture: Picture, button: HTMLElement, note: HTMLElement, l: number, u: number }[]} */
  let cards = [];

  // --- the run ---

  function reset() {
    setting = sound(setting);
    run = new Experiment(setting, config.digits);
    history = new Recording();
    replayable = true;
    view.told = { train: 0, eval: null };
    view.domain = Math.min(view.domain, setting.domains - 1);
    view.brush = Math.min(view.brush, run.data.classes - 1);
    find("trouble").hidden = true;
    buildUnits();
    show();
  }

  /** Change settings; those that the run can take on while it trains do not begin it anew. */
  function change(/** @type {Partial<Setting>} */ values) {
    // another seed is another run of the same lesson
    if (!("seed" in values)) [lesson, until] = [null, 0];
    if (values.data === "own" && setting.data !== "own") values.points = pointsOf(run.data);
    setting = sound({ ...setting, ...values });
    if (Object.keys(values).some((name) => FRESH.includes(name))) return reset();
    run.setting = setting;
    run.net.shape.ghost = setting.ghost;
    run.renew();
    if (run.steps) replayable = false;
    return show();
  }

  function begin(/** @type {Lesson} */ next, /** @type {Partial<Setting>} */ more = {}) {
    lesson = next;
    touched = false;
    until = next.steps;
    view.mode = next.units ?? "train";
    comparing = Boolean(Object.keys(more).length);
    setting = { ...structuredClone(DEFAULTS), ...next.set, seed: setting.seed, ...more };
    reset();
  }

  function train(/** @type {number} */ count) {
    run.train(count);
    if (Number.isFinite(run.batchLoss)) return;
    pause();
    find("trouble").hidden = false;
  }

  const goal = () => (run.steps < until ? until : Infinity);

  let loop = 0; // only the newest goes on
  function play() {
    playing = true;
    const own = ++loop;
    transport();
    if (!still.matches) return requestAnimationFrame(() => frame(own));
    // with reduced motion: train to the end, then draw once
    const end = Number.isFinite(goal()) ? goal() : run.steps + 750;
    const go = () => {
      if (!playing || own !== loop) return;
      train(Math.min(100, end - run.steps));
      if (run.steps >= end) pause();
      else setTimeout(go);
    };
    return go();
  }

  let turn = 0;
  function frame(/** @type {number} */ own) {
    if (!playing || own !== loop) return;
    const end = goal();
    train(Math.min(view.stride, end - run.steps));
    if (!playing) return;
    if (run.steps >= end) return pause();
    measure();
    turn++;
    // surfaces and curves take turns with the units
    if (turn % 2) drawSurfaces();
    else drawUnits();
    if (turn % 4 === 0) drawCharts();
    numbers();
    requestAnimationFrame(() => frame(own));
  }

  function pause() {
    playing = false;
    show();
  }

  function measure() {
    measured = { train: run.measure("train"), eval: run.measure("eval") };
    run.lastPass();
    history.note(run, measured.train, measured.eval);
  }

  // --- pictures ---

  function show() {
    measure();
    if (!touched) chooseUnit();
    panel.sync(setting, run);
    numbers();
    transport();
    describe();
    drawSurfaces();
    drawUnits();
    drawCharts();
    clearTimeout(later);
    later = setTimeout(() => playing || drawAll(), 60);
    const more = { lesson: comparing ? "" : (lesson?.name ?? ""), steps: replayable ? Math.min(run.steps, MOST_STEPS) : 0 };
    host.dataset.state = encode(setting, more);
    remember({ net: host.dataset.state });
  }

  // what is on the screen is drawn at once, all else when the page has answered
  let whole = false;
  let later = 0;
  const visible = (/** @type {Picture} */ drawing) => drawing.look() || whole;
  function drawAll() {
    whole = true;
    drawSurfaces();
    drawUnits();
    drawCharts();
    whole = false;
  }
  addEventListener("beforeprint", drawAll);

  function drawSurfaces() {
    const { train: left, eval: right } = surfaces;
    if (![left, right].map((s) => visible(s.picture)).some(Boolean)) return;
    const { picked } = run.lastPass();
    const perClass = setting.norm === "per_class";
    const common = { run, domain: view.domain, colours, cursor };
    surfaces.train.draw({
      ...common,
      source: "last",
      label: perClass ? view.told.train : null,
      measured: measured.train,
      batch: new Set(picked),
    });
    surfaces.eval.draw({
      ...common,
      source: "stored",
      label: perClass ? view.told.eval : null,
      measured: measured.eval,
      batch: null,
    });
  }

  function drawUnits() {
    const seen = cards.filter((card) => visible(card.picture));
    const large = visible(charts.detail);
    if (!seen.length && !large) return;
    const classes = run.data.classes;
    const common = { measured: measured[view.mode], classes, colours };
    for (const { picture: drawing, note, l, u } of seen) {
      const layer = run.net.layers[l];
      const names = STAGES.map((stage) => say(`network.short.${stage}`));
      const axes = unitAxes(measured[view.mode], l, u, layer.units);
      drawUnit(drawing, { ...common, layer, l, u, axes, large: false, names });
      note.textContent = layer.gamma ? gates(layer, u).slice(0, 3).map(affineText).join("\n") : "";
    }
    if (!large) return;
    const { l, u } = chosen;
    const names = STAGES.map((stage) => say(`network.stage.${stage}`));
    const layer = run.net.layers[l];
    const axes = unitAxes(measured[view.mode], l, u, layer.units);
    drawUnit(charts.detail, { ...common, layer, l, u, axes, large: true, names });
  }

  const affineText = (/** @type {{ gamma: number, beta: number }} */ { gamma, beta }) =>
    `γ\u00a0${fixed(gamma, 2)} β\u00a0${fixed(beta, 2)}`;

  function drawCharts() {
    const { moments } = history;
    const { classes } = run.data;
    const { l, u } = chosen;
    const layer = run.net.layers[l];
    const chance = Math.log(classes);
    /** @type {[Picture, Curve[], [number, number] | null, number?][]} */
    const drawings = [
      [charts.accuracy, modeCurves(moments, "accuracy", colours), [0, 1], 1 / classes],
      [charts.loss, modeCurves(moments, "loss", colours), [0, 2.5 * chance], chance],
      [charts.affine, affineCurves(moments, layer, l, u, colours), null],
      [charts.mean, statisticsCurves(moments, layer, l, u, colours, "mean"), null],
      [charts.deviation, statisticsCurves(moments, layer, l, u, colours, "deviation"), null],
    ];
    const steps = moments.map((m) => m.step);
    for (const [chart, curves, within, level] of drawings) {
      if (!visible(chart)) continue;
      const range = chart === charts.accuracy ? within : curveRange(curves, within, level);
      const format = chart === charts.accuracy ? percent : shownShort;
      drawCurves(chart, { steps, curves, range: range ?? [0, 1], colours, format, level });
    }
  }

  /** Until the reader chooses a unit: the one whose gate treats the classes most differently. */
  function chooseUnit() {
    let most = -1;
    run.net.layers.forEach((layer, l) => {
      for (let u = 0; u < layer.units; u++) {
        const shares = passingShares(measured.train, run.data.classes, l, u, layer.units);
        const spread = Math.max(...shares) - Math.min(...shares);
        if (spread > most + 1e-9) [most, chosen] = [spread, { l, u }];
      }
    });
  }

  // --- words and numbers ---

  const shownNow = () => ({ run, setting, measured, view, chosen });
  const numbers = () => writeNumbers(host, shownNow());
  const describe = () => writeWords(host, shownNow(), lesson, comparing);

  function transport() {
    const button = find("play");
    button.textContent = say(playing ? "network.pause" : "network.play");
    button.setAttribute("aria-pressed", String(playing));
    find("again").disabled = !run.net.layers[0].tracks;
  }

  // --- units ---

  function buildUnits() {
    const { hidden } = setting;
    chosen = { l: Math.min(chosen.l, hidden.length - 1), u: 0 };
    const place = find("units");
    const shape = hidden.join("-");
    if (place.dataset.shape === shape) return;
    place.dataset.shape = shape;
    cards = [];
    place.replaceChildren(
      ...hidden.map((units, l) => {
        const row = html("div", { class: "net-cards" });
        for (let u = 0; u < units; u++) {
          const canvas = /** @type {HTMLCanvasElement} */ (html("canvas", { role: "img" }));
          const note = html("span", {});
          const button = html("button", { type: "button", class: "net-unit" }, canvas, note);
          button.addEventListener("click", () => {
            chosen = { l, u };
            touched = true;
            playing ? describe() : show();
          });
          row.append(button);
          cards.push({ picture: new Picture(canvas), button, note, l, u });
        }
        return html("div", { class: "net-layer" }, html(`h${place.dataset.level}`, {}), row);
      }),
    );
  }

  // --- points of one's own ---

  function pointsOf(/** @type {Data} */ data) {
    if (data.inputs !== 2) return pointsOf(makePoints("blobs", 1, generator(setting.seed)));
    return Array.from({ length: data.n }, (_, i) => ({ x: data.x[2 * i], y: data.x[2 * i + 1], label: data.labels[i] }));
  }

  /** Put other points in the place of the data; the network learns on where its classes stay. */
  function edit(/** @type {Point[]} */ points) {
    const clipped = points.slice(-MOST_POINTS).map(clip);
    if (clipped.length < 2) return;
    lesson = null;
    const domains = setting.domains;
    setting = sound({ ...setting, data: "own", points: clipped });
    const data = fromPoints(clipped);
    if (data.classes !== run.data.classes || domains !== setting.domains) return reset();
    run.setting = setting;
    run.data = data;
    run.renew();
    if (run.steps) replayable = false;
    if (!playing) show();
  }

  for (const name of ["train", "eval"]) {
    editable(find(`surface-${name}`), {
      points: () => (run.data.inputs === 2 ? pointsOf(run.data) : null),
      brush: () => view.brush,
      edit,
      mark: (at) => {
        cursor = at;
        if (!playing) drawSurfaces();
      },
    });
  }

  // --- events ---

  const toggle = () => (playing ? pause() : play());
  function one() {
    if (playing) pause();
    train(1);
    show();
  }
  function again() {
    run.recalibrate();
    replayable = false;
    show();
  }
  function restart() {
    playing = false;
    reset();
  }

  find("play").addEventListener("click", toggle);
  find("step").addEventListener("click", one);
  find("reset").addEventListener("click", restart);
  find("again").addEventListener("click", again);
  find("against").addEventListener("click", () => {
    if (!lesson?.against) return;
    begin(lesson, comparing ? {} : lesson.against);
    play();
  });
  const panel = controlPanel(host, view, {
    change,
    refresh: () => (playing ? panel.sync(setting, run) : show()),
  });
  function open(/** @type {string} */ name, start = true) {
    const next = config.lessons.find((l) => l.name === name);
    if (!next) return;
    playing = false;
    begin(next);
    if (start) play();
  }
  for (const button of host.querySelectorAll("[data-lesson]")) {
    const { lesson: name = "" } = /** @type {HTMLElement} */ (button).dataset;
    button.addEventListener("click", () => open(name));
  }
  document.addEventListener("network", (event) => open(/** @type {CustomEvent} */ (event).detail.lesson));
  document.addEventListener("keydown", (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (target !== document.body && !host.contains(target)) return;
    if (target.closest("input, select, textarea")) return;
    const box = host.getBoundingClientRect();
    if (box.bottom < 0 || box.top > innerHeight) return;
    if (event.key === " " && target.tagName !== "BUTTON") toggle();
    else if (event.key === "s") one();
    else if (event.key === "r") restart();
    else if (event.key === "m") again();
    else if (/^[1-9]$/.test(event.key) && config.lessons[Number(event.key) - 1]) open(config.lessons[Number(event.key) - 1].name);
    else return;
    event.preventDefault();
  });
  const dressed = () => {
    colours = readColours(host);
    if (!playing) show();
  };
  new MutationObserver(dressed).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  redrawOnResize(host, () => !playing && show());

  /** Begin with what the address says, trained as far as it says. */
  function restore() {
    const { net } = remembered();
    const asked = decode(net ?? "");
    lesson = config.lessons.find((l) => l.name === (net ? asked.more.lesson : config.first)) ?? null;
    until = lesson?.steps ?? 0;
    view.mode = lesson?.units ?? "train";
    playing = touched = comparing = false;
    setting = lesson ? { ...structuredClone(DEFAULTS), ...lesson.set, seed: asked.setting.seed } : asked.setting;
    reset();
    const steps = Math.min(MOST_STEPS, Number(asked.more.steps) || 0);
    while (run.steps < steps && Number.isFinite(run.batchLoss)) {
      train(Math.min(Math.ceil(steps / 80), steps - run.steps));
      measure();
    }
    show();
  }
  addEventListener("hashchange", () => remembered().net && restore());
  restore();
  return () => {
    colours = readColours(host);
    show();
  };
}
