// What stands beside the playground: the values of each class to type, and its gamma and beta.

function settingSliders(example, host, points) {
  let built = "";
  let controls = [];

  // far enough for what the presets set, so that a slider never stands at its end by a preset
  function reaches() {
    const pairs = [example.affine(), ...["given", "identity"].map((name) => example.preset(name))];
    const far = (name) => Math.max(3, ...pairs.flatMap((p) => p[name].map(Math.abs)).filter(Number.isFinite));
    return { gamma: Math.ceil(far("gamma") * 1.2), beta: Math.ceil(far("beta") * 1.2) };
  }

  function pair(k) {
    const reach = reaches();
    const make = (name, symbol) => {
      const control = slider(
        symbol,
        { low: -reach[name], high: reach[name], step: reach[name] > 20 ? 0.1 : 0.05, value: example.affine()[name][k] },
        (value) => {
          const all = example.affine()[name].map((v, j) => (example.shared() || j === k ? value : v));
          example.set({ [name]: all, focus: "y" });
        },
      );
      control.input.setAttribute("aria-label", example.shared() ? symbol : `${say("live.class", { k: k + 1 })} ${symbol}`);
      control.input.dataset.parameter = name;
      control.input.dataset.class = k;
      controls.push(() => {
        const value = example.affine()[name][k];
        if (Math.abs(value) > Number(control.input.max)) {
          const far = Math.ceil(Math.abs(value) * 1.2);
          fill(control.input, { min: -far, max: far }, []);
        }
        control.put(value);
      });
      return control.row;
    };
    return [make("gamma", "γ"), make("beta", "β")];
  }

  function valuesOf(k) {
    const name = say("live.class", { k: k + 1 });
    const field = html("input", { type: "text", inputmode: "decimal", spellcheck: "false", "aria-label": say("live.values_of", { k: k + 1 }) });
    field.dataset.values = k;
    field.addEventListener("change", () => {
      const values = field.value.split(/[\s,;，、；]+/).filter(Boolean).map((text) => Number(text.replace("\u2212", "-")));
      const classes = example.classes.map((c, j) => (j === k ? values.slice(0, MOST_VALUES) : c));
      if (!example.set({ classes })) {
        example.tell(say("live.needs_two"));
        field.value = written();
      }
    });
    const written = () => example.classes[k].map((v) => +v.toPrecision(6)).join(", ");
    controls.push(() => (field.value = written()));
    const add = html("button", { type: "button", "data-add": k, "aria-label": say("live.add_value", { k: k + 1 }) }, "+");
    add.addEventListener("click", () => {
      const { high, low } = moments(example.classes[k]);
      points.add(k, Number((high + (high - low || 1) / 4).toPrecision(6)));
    });
    const drop = html("button", { type: "button", "data-drop": k, "aria-label": say("live.drop_class", { k: k + 1 }) }, "×");
    drop.disabled = example.classes.length <= 2;
    drop.addEventListener("click", () => {
      const without = (list) => list.filter((_, j) => j !== k);
      const now = example.affine();
      example.set({ classes: without(example.classes), gamma: without(now.gamma), beta: without(now.beta) });
    });
    return html("div", { class: "values" }, html("span", { class: "of" }, badge(k), name), field, add, drop);
  }

  function build() {
    controls = [];
    const editable = example.classes.length <= MOST_CLASSES;
    const listed = editable || !example.shared() ? example.classes : [];
    const parts = listed.map((_, k) =>
      html("div", { class: "pair" }, ...(editable ? [valuesOf(k)] : [html("span", { class: "of" }, badge(k), say("live.class", { k: k + 1 }))]), ...(example.shared() ? [] : pair(k))),
    );
    if (example.shared()) parts.push(html("div", { class: "pair shared" }, html("span", { class: "of" }, say("live.all_classes")), ...pair(0)));
    host.replaceChildren(...parts);
  }

  function put() {
    const wanted = `${lang} ${example.mode} ${example.classes.length}`;
    if (wanted !== built) {
      built = wanted;
      build();
    }
    for (const control of controls) control();
  }
  return { put };
}

// the address keeps the setting; what is no setting of this page is ignored
const listOf = (text) => (text ?? "").split(",").map((v) => (v.trim() === "" ? NaN : Number(v)));

function rememberExample(example) {
  const short = (list) => list.map((v) => +v.toFixed(6)).join(",");
  const { gamma, beta } = example.affine();
  remember({
    mode: example.mode,
    g: short(gamma),
    b: short(beta),
    x: example.unchanged() ? undefined : example.classes.map((c) => c.map((v) => +v.toPrecision(9)).join(",")).join(";"),
  });
}

function recallExample(example) {
  const asked = remembered();
  const classes = (asked.x ?? "").split(";").map(listOf);
  if (asked.x && classes.length <= MOST_CLASSES && classes.every((c) => c.length <= MOST_VALUES)) example.set({ classes });
  if (asked.mode === "joint" || asked.mode === "per_class") example.set({ mode: asked.mode });
  const K = example.classes.length;
  const fine = (list) => list.length === K && list.every((v) => Number.isFinite(v) && Math.abs(v) <= 1e6);
  const [gamma, beta] = [listOf(asked.g), listOf(asked.b)];
  if (fine(gamma) && fine(beta)) example.set({ gamma, beta });
}
