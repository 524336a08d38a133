// The numbers that every picture of the lesson shares: they start as recorded, the reader changes them.

const MOST_CLASSES = 8;
const MOST_VALUES = 24; // that the page lets a class grow to

function sharedExample(lesson) {
  const stage = Object.fromEntries(lesson.stages.map((s) => [s.name, s]));
  const recorded = stage.input.classes.map((c) => c.values);
  const given = {
    gamma: stage.scaled_shifted.classes.map((c) => c.gamma),
    beta: stage.scaled_shifted.classes.map((c) => c.beta),
  };
  const watchers = [];
  const example = { eps: lesson.eps, stage, recoveries: lesson.recoveries, mode: "joint", focus: "y" };

  const usable = (classes) =>
    classes.length >= 2 &&
    classes.every(
      (c) =>
        c.length >= 2 &&
        c.every((v) => Number.isFinite(v) && Math.abs(v) <= 1e100) &&
        (example.eps > 0 || Math.min(...c) < Math.max(...c)),
    );
  const perClass = (list, other) => example.classes.map((_, k) => list[k] ?? other);

  // one start of one way of learning on the present numbers, computed once
  let kept = new Map();
  example.learned = (name, start = 0) => {
    const key = `${name} ${start}`;
    if (!kept.has(key)) {
      const recovery = lesson.recoveries.find((r) => r.name === name);
      kept.set(key, learnAs(recovery, start, example.classes, example.eps));
    }
    return kept.get(key);
  };

  example.unchanged = () => JSON.stringify(example.classes) === JSON.stringify(recorded);
  example.shared = () => example.mode === "joint";
  // gamma and beta as the mode uses them: one pair for all, or one for each class
  example.affine = () =>
    example.shared()
      ? { gamma: perClass([], example.gamma[0]), beta: perClass([], example.beta[0]) }
      : { gamma: perClass(example.gamma, 1), beta: perClass(example.beta, 0) };

  const whole = () => moments(example.classes.flat());
  const presets = {
    plain: () => ({ gamma: [1], beta: [0] }),
    given: () => given,
    identity: () =>
      example.shared()
        ? { gamma: [Math.sqrt(whole().variance + example.eps)], beta: [whole().mean] }
        : {
            gamma: example.classes.map((c) => Math.sqrt(variance(c) + example.eps)),
            beta: example.classes.map(mean),
          },
  };
  for (const name of Object.keys(WAYS)) {
    presets[name] = () => {
      const way = example.learned(name);
      return way.parameters(way.path.at(-1));
    };
  }
  // without labels: the mean of what was learned by class
  presets.unlabelled = () => {
    const { gamma, beta } = presets.classification();
    return { gamma: [mean(gamma)], beta: [mean(beta)] };
  };
  example.preset = (name) => {
    const { gamma, beta } = presets[name]();
    return example.shared()
      ? { gamma: perClass([], gamma[0]), beta: perClass([], beta[0]) }
      : { gamma: perClass(gamma, 1), beta: perClass(beta, 0) };
  };

  const measured = (classes) => ({ classes, cuts: bestCuts(classes), eta2: eta2(classes) });
  example.stages = () => {
    const { z, y } = transform(example.classes, { mode: example.mode, eps: example.eps, ...example.affine() });
    const a = y.map((values) => values.map((v) => Math.max(0, v)));
    return { x: measured(example.classes), z: measured(z), y: measured(y), a: measured(a) };
  };

  // a change that leaves a class without a variance is refused
  example.set = (changes) => {
    if (changes.classes) {
      if (!usable(changes.classes)) return false;
      kept = new Map();
      const K = changes.classes.length;
      example.classes = changes.classes;
      for (const name of ["gamma", "beta"]) {
        const other = name === "gamma" ? 1 : 0;
        example[name] = Array.from({ length: K }, (_, k) => (changes[name] ?? example[name])[k] ?? other);
      }
    }
    Object.assign(example, changes);
    for (const watcher of watchers) watcher(changes);
    return true;
  };
  example.watch = (watcher) => watchers.push(watcher);
  example.restore = () => example.set({ classes: recorded.map((c) => [...c]) });
  Object.assign(example, {
    classes: recorded.map((c) => [...c]),
    gamma: recorded.map(() => 1),
    beta: recorded.map(() => 0),
  });
  return example;
}
