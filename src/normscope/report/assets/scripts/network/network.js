// The live network: controls, transport, pictures. Starts the part of the page whose id is "net".

const FRESH = ["data", "points", "hidden", "norm", "shared", "domains", "seed"]; // begin a new run
const STRIDES = [1, 3, 10, 50]; // training steps per picture

/**
 * @param {{ lessons: (Lesson & { measured: Record<string, number[]> })[], digits: { pixels: string, labels: string }, first: string }} config
 */
function network(config) {
  const host = /** @type {HTMLElement} */ (document.getElementById("net"));
  const find = (/** @type {string} */ role) => /** @type {any} */ (host.querySelector(`[data-net="${role}"]`));
  const all = (/** @type {string} */ query) => /** @type {any[]} */ ([...host.querySelectorAll(query)]);
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  let setting = structuredClone(DEFAULTS);
  /** @type {Lesson | null} */
  let lesson = null;
  let run = new Experiment(setting, null);
  let history = new Recording();
  let playing = false;
  let until = 0; // a lesson stops at its end once
  let comparing = false; // the lesson's other run
  let stride = 3;
  let replayable = true; // whether setting and steps alone lead to where the run stands
  let mode = /** @type {"train" | "eval"} */ ("train"); // of the units' pictures
  let chosen = { l: 0, u: 0 };
  let touched = false; // whether the reader chose it
  let told = { train: 0, eval: /** @type {number | null} */ (null) }; // labels of the surfaces
  let domain = 0;
  let brush = 0; // the class of a new point, -1 removes
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
    told = { train: 0, eval: null };
    domain = Math.min(domain, setting.domains - 1);
    brush = Math.min(brush, run.data.classes - 1);
    find("trouble").hidden = true;
    buildUnits();
    show();
  }

  /** Change settings; those that the run can take on while it trains do not begin it anew. */
  function change(/** @type {Partial<Setting>} */ values) {
    lesson = null;
    until = 0;
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
    mode = next.units ?? "train";
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

  function play() {
    playing = true;
    transport();
    if (!still.matches) return requestAnimationFrame(frame);
    // with reduced motion: train to the end, then draw once
    const end = Number.isFinite(goal()) ? goal() : run.steps + 750;
    const go = () => {
      if (!playing) return;
      train(Math.min(100, end - run.steps));
      if (run.steps >= end) pause();
      else setTimeout(go);
    };
    return go();
  }

  let turn = 0;
  function frame() {
    if (!playing) return;
    const end = goal();
    train(Math.min(stride, end - run.steps));
    if (!playing) return;
    if (run.steps >= end) return pause();
    measure();
    turn++;
    // surfaces and curves take turns with the units
    if (turn % 2) drawSurfaces();
    else drawUnits();
    if (turn % 4 === 0) drawCharts();
    numbers();
    requestAnimationFrame(frame);
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
    drawSurfaces();
    drawUnits();
    drawCharts();
    controls();
    numbers();
    transport();
    describe();
    const more = { lesson: comparing ? "" : (lesson?.name ?? ""), steps: replayable ? Math.min(run.steps, MOST_STEPS) : 0 };
    remember({ net: encode(setting, more) });
  }

  // while it plays only what is on the screen is drawn
  const visible = (/** @type {Picture} */ drawing) => !playing || drawing.seen;

  function drawSurfaces() {
    if (!visible(surfaces.train.picture)) return;
    const { picked } = run.lastPass();
    const perClass = setting.norm === "per_class";
    const common = { run, domain, colours, cursor };
    surfaces.train.draw({
      ...common,
      source: "last",
      label: perClass ? told.train : null,
      measured: measured.train,
      batch: new Set(picked),
    });
    surfaces.eval.draw({
      ...common,
      source: "stored",
      label: perClass ? told.eval : null,
      measured: measured.eval,
      batch: null,
    });
  }

  function drawUnits() {
    const seen = cards.filter((card) => visible(card.picture));
    if (!seen.length && !visible(charts.detail)) return;
    const classes = run.data.classes;
    const common = { measured: measured[mode], classes, colours };
    for (const { picture: drawing, note, l, u } of seen) {
      const layer = run.net.layers[l];
      const names = STAGES.map((stage) => say(`network.short.${stage}`));
      const axes = unitAxes(measured[mode], l, u, layer.units);
      drawUnit(drawing, { ...common, layer, l, u, axes, large: false, names });
      note.textContent = layer.gamma ? gates(layer, u).slice(0, 3).map(affineText).join("\n") : "";
    }
    if (!visible(charts.detail)) return;
    const { l, u } = chosen;
    const names = STAGES.map((stage) => say(`network.stage.${stage}`));
    const layer = run.net.layers[l];
    const axes = unitAxes(measured[mode], l, u, layer.units);
    drawUnit(charts.detail, { ...common, layer, l, u, axes, large: true, names });
  }

  const affineText = (/** @type {{ gamma: number, beta: number }} */ { gamma, beta }) =>
    `γ ${fixed(gamma, 2)}  β ${fixed(beta, 2)}`;

  function drawCharts() {
    const { moments } = history;
    const steps = moments.map((m) => m.step);
    const both = (/** @type {"loss" | "accuracy"} */ what) =>
      /** @type {const} */ (["train", "eval"]).map((name) => ({
        values: moments.map((m) => m[name][what]),
        colour: colours[name],
        dash: name === "eval" ? [5, 3] : [],
        name: `${name}()`,
      }));
    if (visible(charts.accuracy)) {
      drawCurves(charts.accuracy, { steps, curves: both("accuracy"), range: [0, 1], colours, format: percent, level: 1 / run.data.classes });
    }
    if (visible(charts.loss)) {
      const curves = both("loss");
      const finite = curves.flatMap((curve) => curve.values).filter(Number.isFinite);
      const top = Math.min(2.5 * Math.log(run.data.classes), Math.max(Math.log(run.data.classes) * 1.1, ...finite));
      drawCurves(charts.loss, { steps, curves, range: [0, top], colours, format: (v) => shownNumber(v, 2), level: Math.log(run.data.classes) });
    }
    const { l, u } = chosen;
    const layer = run.net.layers[l];
    const span = (/** @type {Curve[]} */ curves) => {
      const finite = curves.flatMap((curve) => curve.values).filter(Number.isFinite);
      const [low, high] = [Math.min(...finite, 0), Math.max(...finite, 0.1)];
      const room = 0.06 * (high - low);
      return /** @type {[number, number]} */ ([low - room, high + room]);
    };
    const format = (/** @type {number} */ v) => shownNumber(v, 2);
    const put = (/** @type {Picture} */ chart, /** @type {Curve[]} */ curves) => {
      if (visible(chart)) drawCurves(chart, { steps, curves, range: span(curves), colours, format });
    };
    // gamma and beta of the chosen unit; its neighbours faint
    /** @type {Curve[]} */
    const affine = [];
    for (let v = 0; v < layer.affineRows * layer.units; v++) {
      const own = v % layer.units === u;
      const row = Math.floor(v / layer.units);
      for (const name of /** @type {const} */ (["gamma", "beta"])) {
        const symbol = { gamma: "γ", beta: "β" }[name];
        affine.push({
          values: moments.map((m) => m.layers[l][name][v]),
          colour: layer.affineRows > 1 ? colours.classes[row] : { gamma: colours.accent, beta: colours.eval }[name],
          alpha: own ? 1 : 0.22,
          width: own ? 2.25 : 1,
          dash: name === "beta" ? [5, 3] : [],
          name: own ? (layer.affineRows > 1 ? `${symbol} ${row + 1}` : symbol) : undefined,
        });
      }
    }
    put(charts.affine, affine);
    const rows = Array.from({ length: layer.groups }, (_, r) => r * layer.units + u);
    for (const [chart, batch, running, root] of /** @type {const} */ ([
      [charts.mean, "mean", "runningMean", false],
      [charts.deviation, "variance", "runningVar", true],
    ])) {
      const value = (/** @type {number} */ v) => (root ? Math.sqrt(v) : v);
      put(
        chart,
        !layer.tracks
          ? []
          : rows.flatMap((at, r) => {
              const colour = rows.length > 1 ? colours.classes[r] : colours.train;
              return [
                { values: moments.map((m) => value(m.layers[l][batch][at])), colour, dots: true, alpha: 0.6 },
                {
                  values: moments.map((m) => value(m.layers[l][running][at])),
                  colour: rows.length > 1 ? colour : colours.eval,
                  name: rows.length > 1 ? `${say("network.running.short")} ${r + 1}` : say("network.running.short"),
                },
              ];
            }),
      );
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

  function numbers() {
    for (const name of /** @type {const} */ (["train", "eval"])) {
      const { accuracy, loss } = measured[name];
      find(`accuracy-${name}`).textContent = rate(accuracy);
      find(`accuracy-${name}`).dataset.value = String(accuracy);
      find(`loss-${name}`).textContent = say("network.loss_is", { loss: fixed(loss, 3) });
      find(`loss-${name}`).dataset.value = String(loss);
    }
    find("steps").textContent = say("network.steps", { steps: run.steps });
    find("steps").dataset.value = String(run.steps);
    const { l, u } = chosen;
    const layer = run.net.layers[l];
    const [gate] = gates(layer, u);
    const passing = passingShares(measured[mode], run.data.classes, l, u, layer.units).map((share, k) =>
      say("network.passes", { k: className(k), share: percent(share) }),
    );
    const values = { gamma: fixed(gate.gamma, 2), beta: fixed(gate.beta, 2), gate: fixed(gate.z, 2) };
    find("unit-says").textContent = [say(layer.affineRows > 1 ? "network.gates" : "network.gate", values), ...passing].join(say("network.between"));
  }

  const className = (/** @type {number} */ k) => (setting.data === "digits" ? String(k) : String(k + 1));

  function describe() {
    for (const button of all("[data-lesson]")) {
      button.setAttribute("aria-pressed", String(button.dataset.lesson === lesson?.name));
    }
    find("claim-text").textContent = say("network.free");
    find("against").hidden = !lesson?.against;
    if (lesson) {
      const { measured: found } = /** @type {any} */ (lesson);
      /** @type {Record<string, string>} */
      const values = {};
      for (const [of, [low, median, high]] of Object.entries(found)) {
        Object.assign(values, { [of]: rate(median), [`${of}_low`]: rate(low), [`${of}_high`]: rate(high) });
      }
      find("claim-text").textContent = say(`network.lesson.${lesson.name}.claim`, values);
      if (lesson.against) {
        find("against").textContent = say(comparing ? "network.back" : `network.lesson.${lesson.name}.against`);
      }
    }
    const values = { train: rate(measured.train.accuracy), eval: rate(measured.eval.accuracy), steps: run.steps };
    find("says").textContent = say("network.says", values);
    for (const name of ["train", "eval"]) {
      find(`surface-${name}`).setAttribute("aria-label", say(`network.surface.${name}`, values));
      find(`how-${name}`).textContent = say(`network.how.${how(name)}`);
    }
    for (const name of Object.keys(charts)) {
      if (name !== "detail") find(name).setAttribute("aria-label", say(`network.chart.${name}`));
    }
    const { l, u } = chosen;
    const unit = say("network.unit_name", { layer: l + 1, unit: u + 1 });
    find("unit-title").textContent = unit;
    find("detail").setAttribute("aria-label", say("network.detail", { unit }));
    cards.forEach(({ button, l: layer, u: at }) => {
      button.setAttribute("aria-pressed", String(layer === l && at === u));
      button.setAttribute("aria-label", say("network.unit_name", { layer: layer + 1, unit: at + 1 }));
    });
    all(".net-layer h4").forEach((title, at) => {
      title.textContent = say("network.layer", { layer: at + 1, units: setting.hidden[at] });
    });
    const wrong = find("wrong");
    wrong.hidden = setting.norm !== "per_class";
    if (!wrong.hidden) {
      const trap = { wrong: rate(run.measure("train", "wrong").accuracy), told: rate(run.measure("eval", "true").accuracy) };
      wrong.textContent = say("network.wrong", trap);
      run.lastPass();
    }
    find("no-statistics").hidden = run.net.layers[0].tracks;
  }

  /** Which sentence says how a mode normalises. */
  function how(/** @type {string} */ name) {
    if (setting.data === "digits") return `digits_${name}`;
    if (setting.norm === "none" || setting.norm === "layer") return setting.norm;
    if (setting.norm === "per_class") return `${name}_per_class`;
    if (setting.norm === "ghost" && name === "train") return "ghost";
    return name;
  }

  function transport() {
    const button = find("play");
    button.textContent = say(playing ? "network.pause" : "network.play");
    button.setAttribute("aria-pressed", String(playing));
    find("again").disabled = !run.net.layers[0].tracks;
  }

  // --- controls ---

  function controls() {
    for (const input of all("[data-setting]")) {
      const name = /** @type {keyof Setting} */ (input.dataset.setting);
      const value = setting[name];
      if (input.type === "range") {
        const at = CHOICES[name].indexOf(/** @type {number} */ (value));
        input.value = String(at);
        const text = name === "mix" ? mixText(Number(value)) : String(value);
        input.setAttribute("aria-valuetext", text);
        input.closest("label").querySelector("output").textContent = text;
      } else if (input.type === "checkbox") input.checked = value === true || value === 2;
      else input.value = String(value);
    }
    for (const part of all("[data-for]")) {
      const wanted = part.dataset.for.split(" ");
      part.hidden = !wanted.some((/** @type {string} */ w) => holds(w));
    }
    find("domains").disabled = setting.norm === "conditional" || !Object.hasOwn(SHAPES, setting.data);
    find("layers").value = String(setting.hidden.length);
    find("layers-value").textContent = String(setting.hidden.length);
    const rows = find("widths");
    if (rows.children.length !== setting.hidden.length) {
      rows.replaceChildren(...setting.hidden.map((_, l) => widthRow(l)));
    }
    [...rows.children].forEach((row, l) => {
      row.querySelector("input").value = String(setting.hidden[l]);
      row.querySelector("output").textContent = String(setting.hidden[l]);
      row.querySelector("span").textContent = say("network.width", { layer: l + 1 });
    });
    find("seed").value = String(setting.seed);
    find("stride").value = String(stride);
    const plane = run.data.inputs === 2;
    find("brushes").hidden = !plane;
    pick("brush", [0, 1, 2, 3].map((k) => [k, String(k + 1)]).concat([[-1, say("network.remove")]]), brush, (v) => (brush = v));
    const labels = Array.from({ length: run.data.classes }, (_, k) => [k, className(k)]);
    pick("told-train", labels, told.train, (v) => (told.train = v));
    pick("told-eval", [[null, say("network.none_told")], ...labels], told.eval, (v) => (told.eval = v));
    pick("domain", [[0, "A"], [1, "B"]], domain, (v) => (domain = v), false);
    for (const button of all("[data-mode]")) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
  }

  const mixText = (/** @type {number} */ r) => (r === 0 ? say("network.mixed") : r === 1 ? say("network.one_class") : `r = ${r}`);

  /** What a part of the page needs to be of use. */
  function holds(/** @type {string} */ wanted) {
    if (wanted === "domains") return setting.domains > 1;
    return setting.norm === wanted;
  }

  /** A row of buttons of which one is pressed. */
  function pick(/** @type {string} */ role, /** @type {any[][]} */ choices, /** @type {any} */ value, /** @type {(v: any) => void} */ set, marked = true) {
    const row = find(role);
    if (row.children.length !== choices.length) {
      row.replaceChildren(
        ...choices.map(([choice]) => {
          const button = html("button", { type: "button" });
          button.addEventListener("click", () => {
            row.put(choice);
            playing ? controls() : show();
          });
          return button;
        }),
      );
    }
    row.put = set;
    choices.forEach(([choice, text], i) => {
      const badge = marked && choice !== null && choice >= 0;
      row.children[i].replaceChildren(...(badge ? [classBadge(choice)] : []), text);
      row.children[i].setAttribute("aria-pressed", String(choice === value));
    });
  }

  const classBadge = (/** @type {number} */ k) =>
    svg(
      "svg",
      { viewBox: "-8 -8 16 16", width: 13, height: 13, "aria-hidden": "true", class: "badge" },
      svg("path", { d: classMark(k, 5), fill: classColour(k) }),
    );

  function widthRow(/** @type {number} */ l) {
    const input = html("input", { type: "range", min: 1, max: UNITS, step: 1 });
    input.addEventListener("input", () => {
      change({ hidden: setting.hidden.map((w, at) => (at === l ? Number(/** @type {any} */ (input).value) : w)) });
    });
    return html("label", { class: "net-slider" }, html("span", {}), input, html("output", {}));
  }

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
          const canvas = /** @type {HTMLCanvasElement} */ (html("canvas", { "aria-hidden": "true" }));
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
        return html("div", { class: "net-layer" }, html("h4", {}), row);
      }),
    );
  }

  // --- points of one's own ---

  function pointsOf(/** @type {Data} */ data) {
    if (data.inputs !== 2) return pointsOf(makePoints("blobs", 1, generator(setting.seed)));
    return Array.from({ length: data.n }, (_, i) => ({ x: data.x[2 * i], y: data.x[2 * i + 1], label: data.labels[i] }));
  }

  const inside = (/** @type {number} */ v, /** @type {number} */ reach) => Math.min(reach, Math.max(-reach, v));

  /** Put other points in the place of the data; the network learns on where its classes stay. */
  function edit(/** @type {Point[]} */ points) {
    const clipped = points.slice(-MOST_POINTS).map(({ x, y, label }) => {
      return { x: inside(x, WIDE), y: inside(y, REACH), label };
    });
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

  function nearest(/** @type {Point[]} */ points, /** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ within) {
    let best = -1;
    let least = within;
    points.forEach((p, i) => {
      const far = Math.hypot(p.x - x, p.y - y);
      if (far < least) [best, least] = [i, far];
    });
    return best;
  }

  function apply(/** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ within) {
    const points = pointsOf(run.data);
    if (brush >= 0) return edit([...points, { x, y, label: brush }]);
    const at = nearest(points, x, y, within);
    if (at >= 0) edit(points.filter((_, i) => i !== at));
  }

  for (const name of /** @type {const} */ (["train", "eval"])) {
    const canvas = find(`surface-${name}`);
    let held = -1;
    const at = (/** @type {PointerEvent} */ event) => {
      const box = canvas.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * 2 * WIDE - WIDE;
      const y = REACH - ((event.clientY - box.top) / box.height) * 2 * REACH;
      return { x, y, within: (12 / box.width) * 2 * WIDE };
    };
    canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      if (run.data.inputs !== 2 || event.button !== 0) return;
      const { x, y, within } = at(event);
      cursor = null;
      held = brush >= 0 ? nearest(pointsOf(run.data), x, y, within) : -1;
      if (held < 0) apply(x, y, within);
      else canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
      if (held < 0) return;
      const { x, y } = at(event);
      edit(pointsOf(run.data).map((p, i) => (i === held ? { ...p, x, y } : p)));
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (held = -1));
    canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (run.data.inputs !== 2) return;
      if (move) {
        const by = 0.12;
        cursor = {
          x: inside((cursor?.x ?? 0) + by * move[0], WIDE),
          y: inside((cursor?.y ?? 0) + by * move[1], REACH),
        };
        drawSurfaces();
      } else if (event.key === "Enter" && cursor) apply(cursor.x, cursor.y, 0.3);
      else if ((event.key === "Delete" || event.key === "Backspace") && cursor) {
        const kept = brush;
        brush = -1;
        apply(cursor.x, cursor.y, 0.3);
        brush = kept;
      } else return;
      event.preventDefault();
    });
    canvas.addEventListener("blur", () => {
      cursor = null;
      if (!playing) drawSurfaces();
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
  find("stride").addEventListener("change", (/** @type {any} */ e) => (stride = Number(e.target.value)));
  find("seed").addEventListener("change", (/** @type {any} */ e) => {
    setting = { ...setting, seed: Math.min(9999, Math.max(1, Math.round(Number(e.target.value)) || 1)) };
    reset();
  });
  find("layers").addEventListener("input", (/** @type {any} */ e) => {
    const count = Number(e.target.value);
    change({ hidden: Array.from({ length: count }, (_, l) => setting.hidden[l] ?? setting.hidden.at(-1) ?? UNITS) });
  });
  for (const input of all("[data-setting]")) {
    input.addEventListener(input.type === "range" ? "input" : "change", () => {
      const { setting: name } = input.dataset;
      if (input.type === "range") change({ [name]: CHOICES[name][Number(input.value)] });
      else if (input.type === "checkbox") change({ [name]: name === "domains" ? 1 + Number(input.checked) : input.checked });
      else change({ [name]: input.value });
    });
  }
  for (const button of all("[data-mode]")) {
    button.addEventListener("click", () => {
      mode = button.dataset.mode;
      playing ? controls() : show();
    });
  }
  function open(/** @type {string} */ name, start = true) {
    const next = config.lessons.find((l) => l.name === name);
    if (!next) return;
    playing = false;
    begin(next);
    if (start) play();
  }
  for (const button of all("[data-lesson]")) button.addEventListener("click", () => open(button.dataset.lesson));
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
  const asked = decode(remembered().net ?? "");
  lesson = config.lessons.find((l) => l.name === asked.more.lesson) ?? null;
  if (!remembered().net) lesson = config.lessons.find((l) => l.name === config.first) ?? null;
  until = lesson?.steps ?? 0;
  mode = lesson?.units ?? "train";
  setting = lesson ? { ...structuredClone(DEFAULTS), ...lesson.set, seed: asked.setting.seed } : asked.setting;
  reset();
  const steps = Math.min(MOST_STEPS, Number(asked.more.steps) || 0);
  while (run.steps < steps) {
    train(Math.min(Math.ceil(steps / 80), steps - run.steps));
    measure();
  }
  show();
  return () => {
    colours = readColours(host);
    show();
  };
}
