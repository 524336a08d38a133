// One channel of a trained network: every dot a test sample, from x through z and y to ReLU, on one
// axis, at every epoch that was kept.

const STOPS = ["x", "z", "y", "a"];
const PICTURE = 300; // height of all lanes together
const TAIL = 1.6; // bandwidths that a curve goes on beyond its last dot

/**
 * Where z lies on the shared axis at a stop: value = scale * z + shift.
 * @param {{gamma: number, beta: number, mean: number, deviation: number}} frame
 * @param {number} stop 0 is x, 1 is z, 2 and 3 are y
 */
function affineAt(frame, stop) {
  if (stop === 0) return [frame.deviation, frame.mean];
  return stop === 1 ? [1, 0] : [frame.gamma, frame.beta];
}

/** The same between two stops; behind the last one the closed side is drawn towards 0. */
function valueAt(frame, z, at) {
  const below = Math.min(3, Math.floor(at));
  const part = at - below;
  const value = (stop) => {
    const [scale, shift] = affineAt(frame, stop);
    const y = scale * z + shift;
    return stop === 3 ? Math.max(0, y) : y;
  };
  return part === 0 ? value(below) : (1 - part) * value(below) + part * value(below + 1);
}

function frameOf(history, t) {
  const [gamma, beta, mean] = [history.gamma[t], history.beta[t], history.running_mean[t]];
  const deviation = Math.sqrt(history.running_var[t] + history.eps);
  const z = history.x[t].map((x) => (x - mean) / deviation);
  const width = bandwidth(z, history.label, history.classes.length);
  return { gamma, beta, mean, deviation, z, width, passing: history.passing[t], bits: history.information[t] };
}

// of the curves, by Silverman's rule for the spread within the classes
function bandwidth(z, label, lanes) {
  const groups = Array.from({ length: lanes }, (_, lane) => z.filter((_, s) => label[s] === lane)).filter((own) => own.length);
  const squares = groups.map((own) => {
    const mean = own.reduce((sum, v) => sum + v, 0) / own.length;
    return own.reduce((sum, v) => sum + (v - mean) ** 2, 0);
  });
  const deviation = Math.sqrt(squares.reduce((a, b) => a + b, 0) / Math.max(1, z.length));
  return Math.max(1e-6, 0.9 * deviation * (z.length / Math.max(1, groups.length)) ** -0.2);
}

// the density of each lane over z, of equal area, the highest of all lanes 1
function densities(frame, history) {
  const width = frame.width;
  const low = Math.min(...frame.z) - TAIL * width;
  const high = Math.max(...frame.z) + TAIL * width;
  const grid = Array.from({ length: 121 }, (_, i) => low + ((high - low) * i) / 120);
  const lanes = history.classes.map((_, lane) => {
    const own = frame.z.filter((_, s) => history.label[s] === lane);
    return grid.map((g) => own.reduce((sum, z) => sum + Math.exp(-(((g - z) / width) ** 2) / 2), 0) / Math.max(1, own.length));
  });
  const top = Math.max(1e-12, ...lanes.flat());
  return { grid, lanes: lanes.map((lane) => lane.map((d) => d / top)) };
}

// what the address asks for; what it does not say, or wrongly, is as a page opens
function asked(histories) {
  const { learns, step, epoch } = remembered();
  const history = histories.find((one) => one.learns === learns) ?? histories[0];
  const t = epoch === undefined ? -1 : history.epoch.indexOf(Number(epoch));
  const stop = STOPS.includes(step) ? STOPS.indexOf(step) : 1;
  return { history, t: t < 0 ? history.epoch.length - 1 : t, stop, at: stop };
}

function journey(host, histories) {
  const part = (role) => host.querySelector(`[data-role=${role}]`);
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const state = asked(histories);
  let [frame, curves, reach] = [null, null, null];
  let [playing, moving] = [0, 0];

  // the shared axis holds all values of all epochs at all stops
  function span(history) {
    const ends = history.epoch.flatMap((_, t) => {
      const f = frameOf(history, t);
      const zs = [Math.min(...f.z) - TAIL * f.width, Math.max(...f.z) + TAIL * f.width];
      return [0, 1, 2].flatMap((stop) => zs.map((z) => affineAt(f, stop)[0] * z + affineAt(f, stop)[1]));
    });
    const [low, high] = [Math.min(0, ...ends), Math.max(0, ...ends)];
    return [low, high];
  }

  function load() {
    frame = frameOf(state.history, state.t);
    curves = densities(frame, state.history);
  }

  const clipped = (name) => (name.length > 12 ? `${name.slice(0, 11)}…` : name);

  function draw() {
    const { history, t, at } = state;
    const gate = frame.gamma === 0 ? NaN : -frame.beta / frame.gamma;
    const lanes = history.classes.length;
    const lane = Math.min(56, PICTURE / lanes);
    const floor = 20 + lanes * lane;
    const facts = {
      channel: history.channel, layer: history.layer, of: history.channels,
      mean: shown(frame.mean, 2), deviation: shown(frame.deviation, 2),
      gamma: shown(frame.gamma, 2), beta: shown(frame.beta, 2), gate: shown(gate, 2),
      at: shown(frame.mean + gate * frame.deviation, 2),
      ...extremes(history, frame),
    };
    part("title").textContent = say("live.journey.title", facts);
    part("says").textContent = say(`live.journey.says.${STOPS[state.stop]}`, facts);
    Object.assign(host.dataset, { stop: STOPS[state.stop], epoch: history.epoch[t], gate });
    canvas(part("figure"), floor + 40, part("title").textContent, part("says").textContent, (picture, width) => {
      const longest = Math.max(...history.classes.map((name) => clipped(name).length));
      const [left, right] = [Math.min(110, Math.max(34, 8 * longest + 14)), width - 62];
      const place = scale(reach[0], reach[1], left, right);
      const openSide = (z) => frame.gamma * z + frame.beta > 0;
      picture.append(svg("text", { x: right + 58, y: 11, "text-anchor": "end", class: "tick" }, say("live.passes")));
      const at0 = Number.isFinite(gate) ? place(valueAt(frame, gate, Math.min(2, at))) : NaN;
      if (at0 >= left && at0 <= right) {
        picture.append(
          svg("line", { x1: at0, x2: at0, y1: 15, y2: floor + 12, class: "gate" }),
          svg("text", { x: at0, y: 11, "text-anchor": "middle", class: "tick gate-name" }, say("live.journey.gate")),
        );
      }
      history.classes.forEach((name, k) => {
        const base = 20 + (k + 1) * lane - 3;
        picture.append(svg("line", { x1: left, x2: right, y1: base, y2: base, class: "axis" }));
        for (const open of [false, true]) {
          const d = areaOf(k, base, lane, place, gate, open);
          const fade = open ? 1 : Math.max(0, Math.min(1, 3 - at));
          if (d) picture.append(svg("path", { d, class: open ? "hill passes" : "hill blocked", "fill-opacity": 0.45 * fade }));
        }
        let number = 0;
        frame.z.forEach((z, s) => {
          if (history.label[s] !== k) return;
          const up = ((number++ * 0.618034) % 1) * Math.max(4, lane * 0.62);
          picture.append(svg("circle", {
            cx: place(valueAt(frame, z, at)).toFixed(1), cy: (base - 3 - up).toFixed(1), r: 1.9,
            class: openSide(z) ? "mote passes" : "mote blocked",
          }));
        });
        const share = frame.passing[k];
        picture.append(
          svg("text", { x: left - 8, y: base - 5, "text-anchor": "end", class: "lane" }, clipped(name)),
          svg("rect", { x: right + 6, y: base - 12, width: 18, height: 7, class: "blocked" }),
          svg("rect", { x: right + 6, y: base - 12, width: 18 * (share || 0), height: 7, class: "passes" }),
          svg("text", { x: right + 60, y: base - 5, "text-anchor": "end", class: "tick share" }, percent(share)),
        );
      });
      picture.append(axis(place, reach[0], reach[1], floor + 12, {
        from: left, to: right, count: Math.max(3, (right - left) / 70),
        name: state.stop === 3 ? "" : STOPS[state.stop],
      }));
    });
    drawTraining(facts);
  }

  // the highest and the lowest share that passes, each with its class
  function extremes(history, { passing }) {
    const known = passing.map((share, k) => [share, history.classes[k]]).filter(([share]) => Number.isFinite(share));
    const order = known.sort((a, b) => b[0] - a[0]);
    if (!order.length) return {};
    return { high: percent(order[0][0]), first: order[0][1], low: percent(order.at(-1)[0]), last: order.at(-1)[1] };
  }

  // the part of a lane's curve on one side of the gate
  function areaOf(k, base, lane, place, gate, open) {
    if (state.at >= 3 && !open) return "";
    const cut = Number.isFinite(gate);
    if (!cut && (frame.beta > 0) !== open) return "";
    const up = frame.gamma > 0 === open;
    const heights = curves.lanes[k];
    const points = curves.grid.flatMap((z, i) => {
      const here = !cut || (up ? z >= gate : z <= gate);
      const next = curves.grid[i + 1];
      const crosses = cut && next !== undefined && z < gate !== next < gate;
      const edge = crosses ? [[gate, heights[i] + ((heights[i + 1] - heights[i]) * (gate - z)) / (next - z)]] : [];
      return [...(here ? [[z, heights[i]]] : []), ...edge];
    });
    if (points.length < 2) return "";
    const tops = points.map(([z, h]) => [place(valueAt(frame, z, Math.min(state.at, 2))), base - h * lane * 0.92]);
    return `${line([[tops[0][0], base], ...tops, [tops.at(-1)[0], base]])}Z`;
  }

  // gamma and beta over the epochs, with a mark at the one that is shown
  function drawTraining(facts) {
    const { history, t } = state;
    const more = { ...facts, epoch: history.epoch[t], bits: shown(frame.bits, 2), accuracy: percent(history.accuracy[t]) };
    part("epoch").textContent = say(t ? "live.journey.epoch" : "live.journey.start", more);
    const box = part("training");
    canvas(box, 62, say("live.journey.curves"), part("epoch").textContent, (picture, width) => {
      const [left, right, top, bottom] = [8, width - 70, 6, 56];
      const values = [...history.gamma, ...history.beta, 0];
      const x = scale(history.epoch[0], history.epoch.at(-1), left, right);
      const y = scale(Math.min(...values), Math.max(...values), bottom, top);
      picture.append(
        svg("line", { x1: left, x2: right, y1: y(0), y2: y(0), class: "axis" }),
        svg("line", { x1: x(history.epoch[t]), x2: x(history.epoch[t]), y1: top - 4, y2: bottom + 4, class: "axis now" }),
      );
      for (const [sign, track, style] of [["γ", history.gamma, "track"], ["β", history.beta, "track second"]]) {
        const points = track.map((v, i) => [x(history.epoch[i]), y(v)]);
        picture.append(
          svg("path", { d: line(points), class: style }),
          svg("circle", { cx: points[t][0], cy: points[t][1], r: 4, class: style.replace("track", "spot") }),
        );
      }
      // the two labels never on top of each other
      const marks = [y(history.gamma[t]), y(history.beta[t])];
      const apart = 15 - Math.abs(marks[0] - marks[1]);
      if (apart > 0) {
        const upper = marks[0] <= marks[1] ? 0 : 1;
        marks[upper] -= apart / 2;
        marks[1 - upper] += apart / 2;
      }
      ["γ", "β"].forEach((sign, i) => {
        const label = `${sign} = ${i ? facts.beta : facts.gamma}`;
        const within = Math.max(12, Math.min(58, marks[i] + 4));
        picture.append(svg("text", { x: right + 8, y: within, class: i ? "tick second" : "tick first" }, label));
      });
    });
  }

  function keep() {
    const { history, stop, t } = state;
    remember({ learns: history.learns, step: STOPS[stop], epoch: history.epoch[t] });
  }

  function go(stop) {
    state.stop = stop;
    keep();
    cancelAnimationFrame(moving);
    const [from, began] = [state.at, performance.now()];
    if (calm || document.hidden) {
      state.at = stop;
      return draw();
    }
    const tick = (now) => {
      const part = Math.min(1, Math.max(0, (now - began) / (450 * Math.max(1, Math.abs(stop - from)))));
      state.at = part === 1 ? stop : from + (stop - from) * (0.5 - Math.cos(Math.PI * part) / 2);
      draw();
      if (part < 1) moving = requestAnimationFrame(tick);
    };
    tick(began);
  }

  function seek(t) {
    state.t = t;
    keep();
    load();
    draw();
  }

  function build() {
    clearInterval(playing);
    playing = 0;
    const { history } = state;
    const last = history.epoch.length - 1;
    const names = (stop) => say(`live.journey.stop.${STOPS[stop]}`);
    const steps = slider(say("live.journey.steps"), { low: 0, high: 3, step: 1, value: state.stop, format: names }, (stop) => {
      mark(stop);
      go(stop);
    });
    const marks = STOPS.map((_, stop) => {
      const button = html("button", { type: "button", tabindex: -1, "aria-hidden": "true" }, names(stop));
      button.addEventListener("click", () => {
        steps.put(stop);
        mark(stop);
        go(stop);
      });
      return button;
    });
    const epochs = slider(say("live.journey.epochs"), { low: 0, high: last, step: 1, value: state.t, format: (t) => `${history.epoch[t]}` }, (t) => {
      stopPlaying();
      seek(t);
    });
    const play = html("button", { type: "button", "data-role": "play" }, say("live.journey.play"));
    const stopPlaying = () => {
      clearInterval(playing);
      playing = 0;
      play.textContent = say("live.journey.play");
    };
    play.addEventListener("click", () => {
      if (playing) return stopPlaying();
      const to = (t) => {
        epochs.put(t);
        seek(t);
      };
      if (calm) return to(last);
      if (state.t === last) to(0);
      play.textContent = say("live.journey.pause");
      playing = setInterval(() => {
        if (state.t >= last) return stopPlaying();
        to(state.t + 1);
      }, 220);
    });
    const mark = (stop) => marks.forEach((button, i) => button.toggleAttribute("data-now", i === stop));
    mark(state.stop);
    part("steps").replaceChildren(steps.row, html("div", { class: "stops" }, ...marks));
    part("epochs").replaceChildren(epochs.row, play);
    part("networks").replaceChildren(...(histories.length < 2 ? [] : histories.map(network)));
    reach = span(history);
    load();
    draw();
  }

  function network(history) {
    const name = `live.journey.${history.learns}`;
    const button = html("button", { type: "button", "aria-pressed": String(history === state.history) }, say(name, { norm: history.norm }));
    button.addEventListener("click", () => {
      Object.assign(state, { history, t: history.epoch.length - 1 });
      keep();
      build();
      part("networks").querySelector("[aria-pressed=true]").focus();
    });
    return button;
  }

  build();
  redrawOnResize(part("figure"), draw);
  onLanguage(build);
}
