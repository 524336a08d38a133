// gradient descent on gamma and beta, step by step, from a chosen start
function replay(learning, set) {
  const panel = document.getElementById("replay");
  if (!panel) return;
  const [choice, step] = [panel.querySelector("select"), panel.querySelector("input")];
  const [output, play] = [panel.querySelector("output"), panel.querySelector("button")];
  const host = document.getElementById("replay-figure");
  let timer = null;
  const run = () => learning[choice.selectedIndex];

  function draw() {
    const { steps, loss, accuracy } = run();
    const at = Number(step.value);
    step.max = steps.length - 1;
    const text = say("live.replay", {
      step: steps[at],
      loss: shown(loss[at], 4),
      accuracy: percent(accuracy[at]),
    });
    output.textContent = text;
    output.dataset.loss = loss[at];
    output.dataset.accuracy = accuracy[at];
    step.setAttribute("aria-valuetext", text);
    canvas(host, 150, say("live.replay_figure"), text, (picture, width) => {
      const half = width / 2;
      const curve = (values, from, to, top, name) => {
        const x = scale(0, values.length - 1, from, to);
        const y = scale(0, top, 112, 28);
        picture.append(
          svg("text", { x: from, y: 14, class: "panel-title" }, name),
          svg("path", { d: line(values.map((v, i) => [x(i), y(Math.min(v, top))])), class: "curve" }),
          svg("line", { x1: x(at), x2: x(at), y1: 24, y2: 114, class: "gate" }),
          svg("circle", { cx: x(at), cy: y(Math.min(values[at], top)), r: 4.5, class: "here" }),
          axis(scale(steps[0], steps.at(-1), from, to), steps[0], steps.at(-1), 114, { from, to, count: 3 }),
          ...[0, top].map((v) =>
            svg("text", { x: from - 5, y: y(v) + 4, "text-anchor": "end", class: "tick" }, shown(v, 2)),
          ),
        );
      };
      const finite = loss.filter(Number.isFinite);
      curve(loss.map((v) => v ?? NaN), 38, half - 14, Math.max(...finite, 1e-9), say("live.loss"));
      curve(accuracy, half + 38, width - 14, 1, say("live.accuracy"));
    });
  }

  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.setAttribute("aria-pressed", "false");
  };
  const moved = () => {
    draw();
    set(run().gamma[Number(step.value)], run().beta[Number(step.value)]);
  };
  choice.addEventListener("change", () => {
    stop();
    step.max = run().steps.length - 1;
    step.value = 0;
    moved();
  });
  step.addEventListener("input", () => {
    stop();
    moved();
  });
  play.addEventListener("click", () => {
    if (timer) return stop();
    const last = run().steps.length - 1;
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      step.value = last;
      return moved();
    }
    if (Number(step.value) >= last) step.value = 0;
    play.setAttribute("aria-pressed", "true");
    const stride = Math.max(1, Math.round(last / 120));
    timer = setInterval(() => {
      step.value = Math.min(last, Number(step.value) + stride);
      moved();
      if (Number(step.value) >= last) stop();
    }, 40);
  });
  step.max = run().steps.length - 1;
  step.value = 0;
  redrawOnResize(host, draw);
  onLanguage(draw);
}
