// One channel of one layer: a histogram in z-units serves all four stages, only the axis changes.

const LANE = 34;

// the part of the axis that any value is in, with the learned gate where that is near
function populated({ counts, edges, gamma, beta }) {
  const used = counts[0].map((_, b) => counts.some((row) => row[b] > 0));
  const first = Math.max(0, used.indexOf(true));
  const last = used.includes(true) ? used.lastIndexOf(true) : used.length - 1;
  const gate = gamma === 0 ? 0 : Math.min(edges.at(-1), Math.max(edges[0], -beta / gamma));
  return [Math.min(edges[first], gate - 0.25), Math.max(edges[last + 1], gate + 0.25)];
}

function channelCard(card, channel) {
  const host = card.querySelector("[data-role=figure]");
  const controls = card.querySelector("[data-role=sliders]");
  const says = card.querySelector("[data-role=says]");
  const edges = channel.edges;
  const learned = { gamma: channel.gamma, beta: channel.beta };
  const state = { ...learned };
  // of the non-linearities only this one sends the closed side to a single value
  const collapses = /^relu6?$/i.test(channel.activation ?? "");
  const deviation = Math.sqrt(channel.variance + channel.eps);
  const reach = populated(channel);
  const atLearned = () => state.gamma === learned.gamma && state.beta === learned.beta;

  // at the learned gamma and beta the counted shares are exact; elsewhere the histogram answers
  const shares = () =>
    atLearned() && channel.firing
      ? channel.firing
      : channel.counts.map((counts) => firing(counts, edges, state.gamma, state.beta));

  function draw() {
    const passing = shares();
    const information = gateInformation(passing, channel.weights);
    const gate = state.gamma === 0 ? NaN : -state.beta / state.gamma;
    const names = channel.alone ? [say("live.all_samples")] : channel.classes;
    const [inInput, inZ] = names.length > 1 ? ["live.gate_at", "live.gate_at_z"] : ["live.gate_alone", "live.gate_alone_z"];
    const at = channel.mean === null ? inZ : inInput;
    says.textContent = say(state.gamma === 0 ? "live.gate_flat" : at, {
      gate: shown(gate, 2),
      input: shown(channel.mean + gate * deviation, 2),
      low: percent(Math.min(...passing)),
      high: percent(Math.max(...passing)),
      bits: shown(information, 3),
    });
    says.dataset.gate = gate;
    says.dataset.information = information;
    says.dataset.firing = JSON.stringify(passing);
    const K = channel.counts.length;
    const axes = (collapses ? 4 : 3) - (channel.mean === null);
    const height = 24 + K * LANE + 18 + axes * 34;
    canvas(host, height, card.querySelector("h3, h4, h5, h6").textContent, says.textContent, (picture, width) => {
      const longest = Math.max(...names.map((name) => clipped(name).length));
      const [left, right] = [Math.min(120, Math.max(78, 8 * longest)), width - 78];
      const [low, high] = reach;
      const place = scale(low, high, left, right);
      const floor = 24 + K * LANE;
      const bins = edges.slice(1).map((edge, b) => [edges[b], edge]);
      const open = Number.isFinite(gate) ? Math.min(high, Math.max(low, gate)) : state.beta > 0 ? low : high;
      picture.append(
        svg("text", { x: right + 70, y: 12, "text-anchor": "end", class: "tick" }, say("live.passes")),
      );
      channel.counts.forEach((counts, k) => {
        const base = 24 + (k + 1) * LANE - 4;
        const peak = Math.max(1, ...counts);
        const top = (b) => base - (LANE * 1.05 * counts[b]) / peak;
        for (const side of [false, true]) {
          const bars = bins.map(([start, end], b) => {
            const [from, to] = onSide(start, end, gate, side);
            return counts[b] && to > from ? `M${place(from)},${base}V${top(b)}H${place(to)}V${base}z` : "";
          });
          picture.append(svg("path", { d: bars.join(""), class: side ? "passes" : "blocked" }));
        }
        const share = passing[k];
        picture.append(
          svg("line", { x1: left, x2: right, y1: base, y2: base, class: "axis" }),
          svg("text", { x: left - 8, y: base - 5, "text-anchor": "end", class: "lane" }, clipped(names[k])),
          svg("rect", { x: right + 8, y: base - 11, width: 30, height: 7, class: "blocked" }),
          svg("rect", { x: right + 8, y: base - 11, width: 30 * (share || 0), height: 7, class: "passes" }),
          svg("text", { x: right + 70, y: base - 4, "text-anchor": "end", class: "tick share" }, percent(share)),
        );
      });
      if (gate >= low && gate <= high) {
        picture.append(svg("line", { x1: place(gate), x2: place(gate), y1: 18, y2: floor + 6, class: "gate" }));
      }
      axesOf(picture, { left, right, low, high, place, floor, open });
    });
  }

  // the part of a bin that passes, or the part that does not
  function onSide(from, to, gate, passing) {
    if (state.gamma === 0) return passing === state.beta > 0 ? [from, to] : [0, 0];
    return passing === state.gamma > 0 ? [Math.max(from, gate), to] : [from, Math.min(to, gate)];
  }

  function axesOf(picture, { left, right, low, high, place, floor, open }) {
    const count = Math.max(3, (right - left) / 60);
    const ruler = (name, forward, back, row) => {
      const ends = [forward(low), forward(high)];
      const [from, to] = [Math.min(...ends), Math.max(...ends)];
      const y = floor + 18 + row * 34;
      picture.append(axis((v) => place(back(v)), from, to, y, { from: left, to: right, count, name }));
    };
    const input = (z) => channel.mean + z * deviation;
    const output = (z) => state.gamma * z + state.beta;
    // where each sample has a mean of its own, the input has no axis
    const own = channel.mean === null ? 0 : 1;
    if (own) ruler(say("live.axis_input"), input, (h) => (h - channel.mean) / deviation, 0);
    ruler("z", (z) => z, (z) => z, own);
    const back = (y) => (state.gamma === 0 ? 0 : (y - state.beta) / state.gamma);
    ruler("y = γz + β", output, back, own + 1);
    if (!collapses) return;
    const y = floor + 18 + (own + 2) * 34;
    const ends = [output(low), output(high)].map((v) => Math.max(0, v));
    const [bottom, top] = [Math.min(...ends), Math.max(...ends)];
    const [closedFrom, closedTo] = state.gamma >= 0 ? [low, open] : [open, high];
    const openPart = 1 - (closedTo - closedFrom) / (high - low);
    picture.append(
      svg("rect", { x: place(closedFrom), y: y - 3, width: Math.max(0, place(closedTo) - place(closedFrom)), height: 6, class: "blocked" }),
      axis((v) => place(back(v)), bottom, top, y, { from: left, to: right, count: count * openPart, name: channel.activation }),
    );
  }

  const clipped = (name) => (name.length > 14 ? `${name.slice(0, 13)}…` : name);

  function build() {
    const reach = { gamma: Math.max(2, 2 * Math.abs(learned.gamma)), beta: Math.max(3, 2 * Math.abs(learned.beta)) };
    const make = (name, symbol) =>
      slider(symbol, { low: -reach[name], high: reach[name], step: 0.02, value: state[name] }, (value) => {
        state[name] = value;
        draw();
      });
    const [gamma, beta] = [make("gamma", "γ"), make("beta", "β")];
    const reset = html("button", { type: "button" }, say("live.as_learned"));
    reset.addEventListener("click", () => {
      Object.assign(state, learned);
      gamma.put(state.gamma);
      beta.put(state.beta);
      draw();
    });
    controls.replaceChildren(gamma.row, beta.row, reset);
    draw();
  }

  build();
  redrawOnResize(host, draw);
  onLanguage(build);
}
