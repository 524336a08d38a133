// The words and numbers beside the pictures, in the language of the page.

/**
 * @typedef {object} Now
 * @property {Experiment} run
 * @property {Setting} setting
 * @property {{ train: Measured, eval: Measured }} measured
 * @property {View} view
 * @property {{ l: number, u: number }} chosen the unit that is shown large
 */

/** @param {HTMLElement} host @param {string} role @returns {any} */
const part = (host, role) => host.querySelector(`[data-net="${role}"]`);

/** What moves while it plays. @param {HTMLElement} host @param {Now} now */
function writeNumbers(host, { run, setting, measured, view, chosen: { l, u } }) {
  const put = (/** @type {string} */ role, /** @type {string} */ text, /** @type {number} */ value) => {
    const element = part(host, role);
    element.textContent = text;
    element.dataset.value = String(value);
  };
  for (const name of /** @type {const} */ (["train", "eval"])) {
    const { accuracy, loss } = measured[name];
    put(`accuracy-${name}`, rate(accuracy), accuracy);
    put(`loss-${name}`, say("network.loss_is", { loss: fixed(loss, 3) }), loss);
  }
  put("steps", say("network.steps", { steps: run.steps }), run.steps);
  const layer = run.net.layers[l];
  const [gate] = gates(layer, u);
  const values = { gamma: fixed(gate.gamma, 2), beta: fixed(gate.beta, 2), gate: fixed(gate.z, 2) };
  const passing = passingShares(measured[view.mode], run.data.classes, l, u, layer.units).map((share, k) =>
    say("network.passes", { k: className(setting, k), share: percent(share) }),
  );
  const sentences = [say(layer.affineRows > 1 ? "network.gates" : "network.gate", values), ...passing];
  part(host, "unit-says").textContent = sentences.join(say("network.between"));
}

/**
 * What changes with the setting, the lesson or the language.
 * @param {HTMLElement} host
 * @param {Now} now
 * @param {Lesson | null} lesson
 * @param {boolean} comparing
 */
function writeWords(host, now, lesson, comparing) {
  const { run, setting, measured, chosen } = now;
  writeLesson(host, lesson, comparing);
  const values = { train: rate(measured.train.accuracy), eval: rate(measured.eval.accuracy), steps: run.steps };
  part(host, "says").textContent = say("network.says", values);
  for (const name of ["train", "eval"]) {
    part(host, `surface-${name}`).setAttribute("aria-label", say(`network.surface.${name}`, values));
    part(host, `how-${name}`).textContent = say(`network.how.${how(setting, name)}`);
  }
  for (const name of ["accuracy", "loss", "affine", "mean", "deviation"]) {
    part(host, name).setAttribute("aria-label", say(`network.chart.${name}`));
  }
  const unitName = (/** @type {number} */ l, /** @type {number} */ u) =>
    say("network.unit_name", { layer: l + 1, unit: u + 1 });
  const unit = unitName(chosen.l, chosen.u);
  part(host, "unit-title").textContent = unit;
  part(host, "detail").setAttribute("aria-label", say("network.detail", { unit }));
  host.querySelectorAll(".net-layer").forEach((layer, l) => {
    const [title] = layer.children;
    title.textContent = say("network.layer", { layer: l + 1, units: setting.hidden[l] });
    layer.querySelectorAll("button").forEach((button, u) => {
      button.setAttribute("aria-pressed", String(l === chosen.l && u === chosen.u));
      button.querySelector("canvas")?.setAttribute("aria-label", unitName(l, u));
    });
  });
  const wrong = part(host, "wrong");
  wrong.hidden = setting.norm !== "per_class";
  if (!wrong.hidden) {
    const trap = {
      wrong: rate(run.measure("train", "wrong").accuracy),
      told: rate(run.measure("eval", "true").accuracy),
    };
    wrong.textContent = say("network.wrong", trap);
    run.lastPass();
  }
  part(host, "no-statistics").hidden = run.net.layers[0].tracks;
  host.querySelector(".net-lessons")?.setAttribute("aria-label", say("network.lessons"));
  host.querySelector("[data-mode]")?.parentElement?.setAttribute("aria-label", say("network.units.mode"));
}

/**
 * The lesson's claim with what was measured over its seeds: the median, and where it says so the
 * lowest and highest.
 * @param {HTMLElement} host
 * @param {Lesson | null} lesson
 * @param {boolean} comparing
 */
function writeLesson(host, lesson, comparing) {
  for (const button of host.querySelectorAll("[data-lesson]")) {
    const own = /** @type {HTMLElement} */ (button).dataset.lesson === lesson?.name;
    button.setAttribute("aria-pressed", String(own));
  }
  /** @type {Record<string, string>} */
  const values = {};
  for (const [of, [low, median, high]] of Object.entries(lesson?.measured ?? {})) {
    Object.assign(values, { [of]: rate(median), [`${of}_low`]: rate(low), [`${of}_high`]: rate(high) });
  }
  part(host, "claim-text").textContent = lesson
    ? say(`network.lesson.${lesson.name}.claim`, values)
    : say("network.free");
  const against = part(host, "against");
  against.hidden = !lesson?.against;
  if (!lesson?.against) return;
  against.textContent = say(comparing ? "network.back" : `network.lesson.${lesson.name}.against`);
}

/** Which sentence says how a mode normalises. @param {Setting} setting @param {string} name */
function how({ data, norm }, name) {
  if (data === "digits") return `digits_${name}`;
  if (norm === "none" || norm === "layer") return norm;
  if (norm === "per_class") return `${name}_per_class`;
  return norm === "ghost" && name === "train" ? "ghost" : name;
}
