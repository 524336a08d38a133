// The controls beside the pictures: what can be set, and what is set.

/**
 * @typedef {object} View what is shown, apart from what is trained
 * @property {number} stride training steps per picture
 * @property {"train" | "eval"} mode of the units' pictures
 * @property {{ train: number, eval: number | null }} told the labels told to the surfaces
 * @property {number} domain of the surfaces
 * @property {number} brush the class of a new point, -1 removes
 */

/** A class as people name it. @param {Setting} setting @param {number} k */
const className = (setting, k) => String(setting.data === "digits" ? k : k + 1);

/** @param {number} r */
const mixText = (r) => (r === 0 ? say("network.mixed") : r === 1 ? say("network.one_class") : `r = ${r}`);

/** A class's mark in its colour. @param {number} k */
const classBadge = (k) =>
  svg(
    "svg",
    { viewBox: "-8 -8 16 16", width: 13, height: 13, "aria-hidden": "true", class: "badge" },
    svg("path", { d: classMark(k, 5), fill: classColour(k) }),
  );

/**
 * @param {HTMLElement} host
 * @param {View} view written
 * @param {{ change: (values: Partial<Setting>) => void, refresh: () => void }} to
 */
function controlPanel(host, view, { change, refresh }) {
  const find = (/** @type {string} */ role) => /** @type {any} */ (host.querySelector(`[data-net="${role}"]`));
  const all = (/** @type {string} */ query) => /** @type {any[]} */ ([...host.querySelectorAll(query)]);
  let setting = DEFAULTS;

  /** Put every control where the setting is. */
  function sync(/** @type {Setting} */ now, /** @type {Experiment} */ run) {
    setting = now;
    all("[data-setting]").forEach(put);
    for (const part of all("[data-for]")) {
      const wanted = part.dataset.for.split(" ");
      part.hidden = !(wanted.includes(setting.norm) || (wanted.includes("domains") && setting.domains > 1));
    }
    find("domains").disabled = setting.norm === "conditional" || !Object.hasOwn(SHAPES, setting.data);
    find("layers").value = String(setting.hidden.length);
    find("layers-value").textContent = String(setting.hidden.length);
    widths();
    find("seed").value = String(setting.seed);
    find("stride").value = String(view.stride);
    find("brushes").hidden = run.data.inputs !== 2;
    const brushes = [0, 1, 2, 3].map((k) => [k, String(k + 1)]);
    pick("brush", [...brushes, [-1, say("network.remove")]], view.brush, (v) => (view.brush = v));
    const labels = Array.from({ length: run.data.classes }, (_, k) => [k, className(setting, k)]);
    pick("told-train", labels, view.told.train, (v) => (view.told.train = v));
    pick("told-eval", [[null, say("network.none_told")], ...labels], view.told.eval, (v) => (view.told.eval = v));
    const domains = [
      [0, "A"],
      [1, "B"],
    ];
    pick("domain", domains, view.domain, (v) => (view.domain = v), false);
    for (const button of all("[data-mode]")) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === view.mode));
    }
  }

  function put(/** @type {any} */ input) {
    const name = /** @type {keyof Setting} */ (input.dataset.setting);
    const value = setting[name];
    if (input.type === "checkbox") input.checked = value === true || value === 2;
    else if (input.type !== "range") input.value = String(value);
    else {
      input.value = String(CHOICES[name].indexOf(/** @type {number} */ (value)));
      const text = name === "mix" ? mixText(Number(value)) : String(value);
      input.setAttribute("aria-valuetext", text);
      input.closest("label").querySelector("output").textContent = text;
    }
  }

  /** One slider per hidden layer. */
  function widths() {
    const rows = find("widths");
    if (rows.children.length !== setting.hidden.length) rows.replaceChildren(...setting.hidden.map((_, l) => width(l)));
    [...rows.children].forEach((row, l) => {
      row.querySelector("input").value = String(setting.hidden[l]);
      row.querySelector("output").textContent = String(setting.hidden[l]);
      row.querySelector("span").textContent = say("network.width", { layer: l + 1 });
    });
  }

  function width(/** @type {number} */ l) {
    const input = html("input", { type: "range", min: 1, max: UNITS, step: 1 });
    input.addEventListener("input", () => {
      change({ hidden: setting.hidden.map((w, at) => (at === l ? Number(input.value) : w)) });
    });
    return html("label", { class: "net-slider" }, html("span", {}), input, html("output", {}));
  }

  /**
   * A row of buttons of which one is pressed.
   * @param {string} role
   * @param {any[][]} choices value and text
   * @param {any} value
   * @param {(v: any) => void} set
   * @param {boolean} [marked] with the class's mark
   */
  function pick(role, choices, value, set, marked = true) {
    const row = find(role);
    if (row.children.length !== choices.length) {
      row.replaceChildren(
        ...choices.map(([choice]) => {
          const button = html("button", { type: "button" });
          button.addEventListener("click", () => {
            set(choice);
            refresh();
          });
          return button;
        }),
      );
    }
    choices.forEach(([choice, text], i) => {
      const badge = marked && choice !== null && choice >= 0;
      row.children[i].replaceChildren(...(badge ? [classBadge(choice)] : []), text);
      row.children[i].setAttribute("aria-pressed", String(choice === value));
    });
  }

  for (const input of all("[data-setting]")) {
    const name = input.dataset.setting;
    input.addEventListener(input.type === "range" ? "input" : "change", () => {
      if (input.type === "range") change({ [name]: CHOICES[name][Number(input.value)] });
      else if (input.type !== "checkbox") change({ [name]: input.value });
      else change({ [name]: name === "domains" ? 1 + Number(input.checked) : input.checked });
    });
  }
  find("layers").addEventListener("input", (/** @type {any} */ e) => {
    const length = Number(e.target.value);
    change({ hidden: Array.from({ length }, (_, l) => setting.hidden[l] ?? setting.hidden.at(-1) ?? UNITS) });
  });
  find("seed").addEventListener("change", (/** @type {any} */ e) => {
    change({ seed: Math.min(9999, Math.max(1, Math.round(Number(e.target.value)) || 1)) });
  });
  find("stride").addEventListener("change", (/** @type {any} */ e) => (view.stride = Number(e.target.value)));
  for (const button of all("[data-mode]")) {
    button.addEventListener("click", () => {
      view.mode = button.dataset.mode;
      refresh();
    });
  }
  return { sync };
}
