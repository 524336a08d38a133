// The values of the input track as handles: to drag, to move by keys, to remove; a lane takes new ones.

const DRAG_STEPS = 200; // over the width of the axis, to round values
const MOST_HANDLES = 60;

function pointHandles(example, picture, { axisChanges }) {
  const layer = svg("g", { class: "handles" });
  let track = null; // what paintTracks gave for the input
  let held = null;
  let pressed = [null, null];

  const roundTo = () => {
    const raw = (track.high - track.low) / DRAG_STEPS;
    const power = 10 ** Math.floor(Math.log10(raw));
    return power * [1, 2, 5, 10].find((s) => s * power >= raw);
  };
  const rounded = (value) => {
    const step = roundTo();
    return Number((Math.round(value / step) * step).toPrecision(12));
  };
  const changed = (k, i, value) =>
    example.classes.map((c, j) => (j !== k ? c : value === null ? c.filter((_, n) => n !== i) : c.map((v, n) => (n === i ? value : v))));
  const refuse = () => example.tell(say("live.needs_two"));

  function move(k, i, value) {
    if (!example.set({ classes: changed(k, i, value) })) refuse();
  }
  function remove(k, i) {
    if (!example.set({ classes: changed(k, i, null) })) return refuse();
    focusPoint(k, Math.min(i, example.classes[k].length - 1));
  }
  function add(k, value) {
    if (example.classes[k].length >= MOST_VALUES) return;
    example.set({ classes: example.classes.map((c, j) => (j === k ? [...c, value] : c)) });
    focusPoint(k, example.classes[k].length - 1);
  }
  const focusPoint = (k, i) => layer.querySelector(`[data-point="${k},${i}"]`)?.focus();

  function keyed(event, k, i) {
    const step = roundTo();
    const value = example.classes[k][i];
    const by = { ArrowRight: step, ArrowUp: step, ArrowLeft: -step, ArrowDown: -step, PageUp: 10 * step, PageDown: -10 * step }[event.key];
    if (by !== undefined) move(k, i, rounded(value + by));
    else if (event.key === "Home") move(k, i, rounded(track.low));
    else if (event.key === "End") move(k, i, rounded(track.high));
    else if (event.key === "Delete" || event.key === "Backspace") remove(k, i);
    else if (event.key === "Insert" || event.key === "+") add(k, rounded(value + 2 * step));
    else return;
    event.preventDefault();
  }

  // the handles stay the same elements while their values move, so that focus stays too
  function put(given) {
    track = given;
    const count = example.classes.flat().length;
    const wanted = new Map();
    if (count <= MOST_HANDLES) {
      example.classes.forEach((values, k) => values.forEach((value, i) => wanted.set(`${k},${i}`, { k, i, value })));
    }
    for (const old of [...layer.children]) if (!wanted.has(old.dataset.point)) old.remove();
    for (const [key, { k, i, value }] of wanted) {
      let handle = layer.querySelector(`[data-point="${key}"]`);
      if (!handle) {
        handle = svg("g", { class: "point", role: "slider", tabindex: 0, "data-point": key }, svg("circle", { r: 12 }));
        handle.addEventListener("keydown", (event) => keyed(event, k, i));
        layer.append(handle);
      }
      const of = example.classes[k].length;
      fill(handle, {
        transform: `translate(${track.place(value).toFixed(2)},${track.y(k)})`,
        "aria-label": say("live.point", { k: k + 1, i: i + 1, of }),
        "aria-valuenow": value,
        "aria-valuemin": track.low,
        "aria-valuemax": track.high,
        "aria-valuetext": shown(value),
      }, []);
    }
  }

  const valueAt = (event) => {
    const box = picture.getBoundingClientRect();
    const unit = picture.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * unit;
    const share = (x - track.place(track.low)) / (track.place(track.high) - track.place(track.low));
    return track.low + Math.min(1, Math.max(0, share)) * (track.high - track.low);
  };

  picture.addEventListener("pointerdown", (event) => {
    const handle = event.target.closest?.("[data-point]");
    pressed = [pressed[1], handle];
    if (handle) {
      const [k, i] = handle.dataset.point.split(",").map(Number);
      held = { k, i };
      axisChanges(false);
      picture.setPointerCapture(event.pointerId);
      handle.focus();
      event.preventDefault();
    } else if (event.target.dataset?.lane !== undefined) {
      add(Number(event.target.dataset.lane), rounded(valueAt(event)));
      event.preventDefault();
    }
  });
  picture.addEventListener("pointermove", (event) => {
    if (!held) return;
    const value = rounded(valueAt(event));
    if (value !== example.classes[held.k]?.[held.i]) move(held.k, held.i, value);
  });
  const release = () => {
    if (!held) return;
    held = null;
    axisChanges(true);
  };
  picture.addEventListener("pointerup", release);
  picture.addEventListener("pointercancel", release);
  // both presses were on the same value: none that the first press has added
  picture.addEventListener("dblclick", () => {
    if (pressed[0] !== null && pressed[0] === pressed[1]) remove(...pressed[1].dataset.point.split(",").map(Number));
  });

  // where a click adds a value: the lanes, under the handles
  function lanes(group, width) {
    if (example.classes.flat().length > MOST_HANDLES) return;
    const deep = laneOf(example.classes.length) || 13;
    example.classes.forEach((_, k) => {
      group.append(svg("rect", { x: 10, y: track.y(k) - deep / 2, width: width - 20, height: deep, class: "lane-area", "data-lane": k }));
    });
  }
  return { layer, put, lanes, add };
}
