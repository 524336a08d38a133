// Three ways of learning gamma and beta side by side, step by step, from a chosen start.

function recoveryCards(example) {
  const choice = document.getElementById("recovery-start");
  const cards = example.recoveries.map((recovery) => recoveryCard(example, recovery, () => choice.selectedIndex));
  const all = playing(document.getElementById("recovery-run"), (share) => cards.forEach((card) => card.at(share)), { milliseconds: 5000 });
  choice.addEventListener("change", () => {
    all.stop();
    for (const card of cards) card.restart();
  });
  example.watch((changes) => {
    if (!changes.classes) return;
    for (const card of cards) card.draw();
  });
  onLanguage(() => cards.forEach((card) => card.draw()));
}

function recoveryCard(example, recovery, start) {
  const card = document.querySelector(`[data-recovery="${recovery.name}"]`);
  const [host, output] = [card.querySelector("[data-role=figure]"), card.querySelector("output")];
  const [slider, button] = [card.querySelector("input"), card.querySelector("button")];
  const last = recovery.steps.length - 1;
  slider.max = last;
  slider.value = last;

  // what the pictures of all steps hold, so that no axis moves while they play
  function axisOf(way) {
    const values = way.path.flatMap((at) => way.output(at).flat());
    const templates = fitted(recovery.name, recovery.starts[start()], example.classes, example.eps).templates ?? [];
    const own = ownStandard(example.classes, example.eps).flat();
    if (recovery.name === "distribution") {
      const input = inputAxis(example.classes.flat());
      return [Math.min(input[0], ...values, -1), Math.max(input[1], ...values)];
    }
    return standardAxis([...values, ...(recovery.name === "joint" ? way.z.flat() : [...own, ...templates])]);
  }

  function draw() {
    const way = example.learned(recovery.name, start());
    const place = Number(slider.value);
    const at = way.path[place];
    const classes = way.output(at);
    const { gamma, beta } = way.parameters(at);
    const cuts = bestCuts(classes);
    const joint = recovery.name === "joint";
    const right = joint ? way.right(at) : cuts.right;
    const loss = way.loss(at);
    const text = say("live.recovery_step", { step: recovery.steps[place], right, of: cuts.of, loss: shown(loss < 1e-6 ? 0 : loss, loss < 0.1 ? 4 : 2) });
    output.textContent = text;
    Object.assign(output.dataset, { loss, accuracy: right / cuts.of, gamma: gamma.join(","), beta: beta.join(","), step: recovery.steps[place] });
    slider.setAttribute("aria-valuetext", text);

    const axis = axisOf(way);
    const count = say("live.count", { right, of: cuts.of });
    const open = (v) => v > 0;
    const rows = {
      distribution: () => [
        { key: "x", classes: example.classes, axis, name: say("live.stage_input") },
        { key: "y", classes, axis, name: say("live.stage_y"), ghosts: example.classes },
      ],
      classification: () => [
        { key: "z", classes: ownStandard(example.classes, example.eps), axis, name: say("live.stage_z") },
        { key: "y", classes, axis, name: say("live.stage_y"), marks: fitted(recovery.name, recovery.starts[start()], example.classes, example.eps).templates },
      ],
      joint: () => {
        const gate = -beta[0] / gamma[0];
        const closed = gamma[0] > 0 ? [axis[0], gate] : [gate, axis[1]];
        return [
          { key: "z", classes: way.z, axis, name: say("live.stage_z"), gate: [gate], closed },
          { key: "a", classes, axis, name: say("live.stage_a"), bells: false, open },
        ];
      },
    }[recovery.name]();
    rows[1] = { ...rows[1], cuts: cuts.cuts, verdict: count };
    const height = tracksHeight(rows);
    canvas(host, height + 84, say("live.recovery_figure"), text, (picture, width) => {
      paintTracks(picture, width, rows);
      lossCurve(picture, way.path.map(way.loss), place, { width, top: height + 18 });
    });
  }

  const put = (place) => {
    slider.value = place;
    draw();
  };
  const player = playing(button, (share) => put(Math.round(share * last)), { milliseconds: 5000 });
  slider.addEventListener("input", () => {
    player.stop();
    draw();
  });
  card.querySelector("[data-role=use]").addEventListener("click", () => {
    const way = example.learned(recovery.name, start());
    const { gamma, beta } = way.parameters(way.path[Number(slider.value)]);
    example.set({ mode: recovery.name === "joint" ? "joint" : "per_class", gamma, beta: [...beta], focus: recovery.name === "joint" ? "a" : "y" });
    document.getElementById("play").scrollIntoView();
  });
  redrawOnResize(host, draw);
  return {
    draw,
    restart: () => put(0),
    at: (share) => put(Math.round(share * last)),
  };
}

// the loss over the recorded steps, in powers of ten, down to rounding beside the first
function lossCurve(picture, losses, place, { width, top }) {
  const [left, right, bottom] = [10, width - 10, top + 44];
  const floor = Math.max(1e-300, losses[0] * 1e-6);
  const high = Math.log10(Math.max(...losses, floor));
  const low = Math.min(high - 0.5, Math.log10(Math.max(floor, Math.min(...losses))));
  const x = scale(0, losses.length - 1, left, right);
  const y = scale(low, high, bottom, top);
  const points = losses.map((v, i) => [x(i), y(Math.max(low, Math.log10(Math.max(v, floor))))]);
  picture.append(
    svg("text", { x: left, y: top - 4, class: "tick" }, say("live.loss_curve", { first: shown(losses[0], 2) })),
    svg("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }),
    svg("path", { d: line(points), class: "curve" }),
    svg("circle", { cx: points[place][0], cy: points[place][1], r: 5, class: "here" }),
  );
}
