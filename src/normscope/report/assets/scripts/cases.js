// When the fear comes true: batches of one class, of two values, stale statistics, the label as a key.

function fearCases(example) {
  const draws = [compareCase, oneClassCase, pairCase, staleCase, trapCase].map((make) => make(example));
  const draw = () => draws.forEach((one) => one());
  example.watch((changes) => changes.classes && draw());
  onLanguage(draw);
}

// one figure of a case: draws when it has a width, and whenever the numbers change
function caseFigure(id, draw) {
  const host = document.getElementById(id);
  if (host) redrawOnResize(host, () => draw(host));
  return () => host && draw(host);
}
const counted = (cuts) => say("live.count", { right: cuts.right, of: cuts.of });

// the same values standardised together and class by class
function compareCase(example) {
  const one = (id, name, standard) =>
    caseFigure(id, (host) => {
      const z = standard(example.classes, example.eps);
      const both = [jointStandard, ownStandard].flatMap((s) => s(example.classes, example.eps).flat());
      const cuts = bestCuts(z);
      const rows = [
        { key: "x", classes: example.classes, axis: inputAxis(example.classes.flat()), name: say("live.stage_input") },
        { key: "z", classes: z, axis: standardAxis(both), name: say(name), cuts: cuts.cuts, verdict: counted(cuts) },
      ];
      host.dataset.accuracy = cuts.accuracy;
      canvas(host, tracksHeight(rows), say(name), counted(cuts), (picture, width) => paintTracks(picture, width, rows));
    });
  const pair = [one("compare-joint", "live.stage_joint", jointStandard), one("compare-own", "live.stage_own", ownStandard)];
  return () => pair.forEach((draw) => draw());
}

// each batch holds one class: its mean is the class mean, and is subtracted
function oneClassCase(example) {
  return caseFigure("case-one", (host) => {
    const z = ownStandard(example.classes, example.eps);
    const all = [...z.flat()];
    const cuts = bestCuts(z);
    const rows = z.map((values, k) => ({
      key: `batch${k}`,
      classes: z.map((other, j) => (j === k ? values : [])),
      axis: standardAxis(all),
      name: say("live.batch_of_class", { k: k + 1 }),
      verdict: k === z.length - 1 ? counted(cuts) : "",
    }));
    host.dataset.accuracy = cuts.accuracy;
    batches(host, rows, say("live.case_one"));
  });
}

// two values have one standardised form: -1 and +1
function pairCase(example) {
  return caseFigure("case-two", (host) => {
    const [first, second] = example.classes;
    const pairs = [
      [[first[0]], [second[0]]],
      [[first[0], first[1]], []],
      [[], [second[0], second[1]]],
    ];
    const rows = pairs.map((batch, i) => {
      const values = batch.flat();
      const standard = (v) => standardise([v], mean(values), variance(values), example.eps)[0];
      return {
        key: `pair${i}`,
        classes: batch.map((c) => c.map(standard)),
        axis: [-2, 2],
        name: say("live.batch_of", { values: values.map((v) => shown(v)).join(", ") }),
      };
    });
    batches(host, rows, say("live.case_two"));
  });
}

function batches(host, rows, name) {
  const tracks = rows.map((row) => ({ bells: false, ...row }));
  canvas(host, tracksHeight(tracks), name, name, (picture, width) => {
    // each batch is alone: nothing leads from one to the next
    tracks.forEach((track, r) => {
      const group = svg("g", { transform: `translate(0,${tracksHeight(tracks.slice(0, r))})` });
      paintTracks(group, width, [track]);
      picture.append(group);
    });
  });
}

// the data moved after the statistics were stored; the gate learned on the old ones stays
function staleCase(example) {
  const place = document.getElementById("stale-slider");
  if (!place) return () => {};
  let moved = 1;
  let fresh = false;
  const [output, button] = [document.getElementById("stale-says"), document.getElementById("stale-measure")];
  const figure = caseFigure("case-stale", (host) => {
    const all = example.classes.flat();
    const [centre, spread] = [mean(all), variance(all)];
    const shift = moved * Math.sqrt(spread);
    const now = example.classes.map((c) => c.map((v) => v + shift));
    const z = now.map((c) => standardise(c, fresh ? centre + shift : centre, spread, example.eps));
    // the cut that was best on the old data
    const before = jointStandard(example.classes, example.eps);
    const old = bestCuts(before);
    const right = rightOf(old.cuts, before, z);
    const axis = [Math.min(...before.flat()) - 2.1, Math.max(...before.flat()) + 2.1];
    const rows = [
      { key: "old", classes: before, axis, name: say("live.stale_before"), cuts: old.cuts, verdict: counted(old) },
      { key: "now", classes: z, axis, name: say(fresh ? "live.stale_measured" : "live.stale_now"), cuts: old.cuts, verdict: say("live.count", { right, of: all.length }) },
    ];
    output.textContent = say(fresh ? "live.stale_says_measured" : "live.stale_says", { right, of: all.length, moved: shown(moved, 2) });
    output.dataset.value = right / all.length;
    canvas(host, tracksHeight(rows), say("live.case_stale"), output.textContent, (picture, width) => paintTracks(picture, width, rows));
  });
  function build() {
    const control = slider(say("live.stale_moved"), { low: -2, high: 2, step: 0.1, value: moved, format: (v) => shown(v, 1) }, (value) => {
      moved = value;
      fresh = false;
      draw();
    });
    control.row.classList.add("named");
    place.replaceChildren(control.row);
  }
  function draw() {
    button.setAttribute("aria-pressed", String(fresh));
    figure();
  }
  button.addEventListener("click", () => {
    fresh = !fresh;
    draw();
  });
  let built = "";
  return () => {
    if (built !== lang) build();
    built = lang;
    draw();
  };
}

// how many values fall where the cuts, read on the old values, expect their class
function rightOf(cuts, before, now) {
  const interval = (v) => cuts.filter((cut) => v > cut).length;
  const votes = new Map();
  before.forEach((values, k) => values.forEach((v) => votes.set(`${interval(v)} ${k}`, (votes.get(`${interval(v)} ${k}`) ?? 0) + 1)));
  const owner = (i) => before.reduce((best, _, k) => ((votes.get(`${i} ${k}`) ?? 0) > (votes.get(`${i} ${best}`) ?? 0) ? k : best), 0);
  return now.reduce((sum, values, k) => sum + values.filter((v) => owner(interval(v)) === k).length, 0);
}

// gamma and beta by class, learned with labels: with the right label, a wrong one, none
function trapCase(example) {
  const choices = [...document.querySelectorAll("[name=trap]")];
  const output = document.getElementById("trap-says");
  const figure = caseFigure("case-trap", (host) => {
    const label = choices.find((c) => c.checked).value;
    const way = example.learned("classification");
    const { gamma, beta } = way.parameters(way.path.at(-1));
    const K = example.classes.length;
    const own = ownStandard(example.classes, example.eps);
    const joint = jointStandard(example.classes, example.eps);
    const row = (k) => (label === "right" ? k : (k + 1) % K);
    const y = label === "none" ? joint.map((c) => affine(c, mean(gamma), mean(beta))) : own.map((c, k) => affine(c, gamma[row(k)], beta[row(k)]));
    const right = y.reduce((sum, values, k) => sum + values.filter((v) => way.answer(v) === k).length, 0);
    const of = y.flat().length;
    const begin = fitted("classification", example.recoveries.find((r) => r.name === "classification").starts[0], example.classes, example.eps);
    output.textContent = say(`live.trap_${label}`, { right, of });
    output.dataset.value = right / of;
    const rows = [{ key: "y", classes: y, axis: standardAxis([...y.flat(), ...begin.templates]), name: say("live.stage_scaled"), marks: begin.templates, verdict: say("live.count", { right, of }) }];
    canvas(host, tracksHeight(rows), say("live.case_trap"), output.textContent, (picture, width) => paintTracks(picture, width, rows));
  });
  for (const choice of choices) choice.addEventListener("change", figure);
  return figure;
}
