// The mathematics of the page: plain functions of numbers and arrays, nothing of the document.

const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;

// population variance, centred: the same that batch normalisation divides by
function variance(values) {
  const centre = mean(values);
  return mean(values.map((v) => (v - centre) ** 2));
}

const moments = (values) => ({
  mean: mean(values),
  variance: variance(values),
  low: Math.min(...values),
  high: Math.max(...values),
});

// z = (h - mean) / sqrt(var + eps); a constant group without eps has no z
function standardise(values, centre, spread, eps) {
  const scale = Math.sqrt(spread + eps);
  return values.map((v) => (v - centre) / scale);
}

const affine = (values, gamma, beta) => values.map((v) => gamma * v + beta);

const positiveShare = (values) => values.filter((v) => v > 0).length / values.length;

// between-class share of the variance of all values together
function eta2(classes) {
  const all = classes.flat();
  const total = variance(all);
  const centre = mean(all);
  const between = classes.reduce((sum, c) => sum + (c.length / all.length) * (mean(c) - centre) ** 2, 0);
  return total > 0 ? between / total : 0; // a constant has nothing to share
}

// The best cuts of the line into at most K intervals, at most one per class, in any order.
// The same rule as in Python: dynamic programming over the sets of classes already placed (in the
// order of their means where those are too many); among the best rules one with the fewest cuts.
function bestCuts(classes) {
  const K = classes.length;
  const ranked = classes.toSorted((a, b) => mean(a) - mean(b));
  const items = ranked.flatMap((c, k) => c.map((value) => ({ value, k })));
  items.sort((a, b) => a.value - b.value);
  const n = items.length;

  // a cut can be between two values that differ by more than rounding, at the start, at the end
  const least = Math.min(...ranked.map((c) => Math.sqrt(variance(c))));
  const rounding = (a, b) => {
    const size = Math.max(Math.abs(a), Math.abs(b));
    return 1e-9 * least + 8 * (size > 0 ? Number.EPSILON * 2 ** Math.floor(Math.log2(size)) : 5e-324);
  };
  const places = [0];
  for (let i = 1; i < n; i++) {
    const [a, b] = [items[i - 1].value, items[i].value];
    if (b - a > rounding(a, b)) places.push(i);
  }
  places.push(n);

  // below[k][i]: values of class k before place i; one hit is worth more than all intervals cost
  const hit = K + 1;
  const below = ranked.map((_, k) => {
    let seen = 0;
    const upTo = [0, ...items.map((item) => (item.k === k ? ++seen : seen))];
    return places.map((place) => hit * upTo[place]);
  });

  // a set of placed classes is a bit mask, or, where their order is given, how many they are
  const exact = K * 2 ** K <= Math.floor(2 ** 20 / n);
  const everyone = exact ? 2 ** K - 1 : K;
  const without = (set, k) => (exact ? set - 2 ** k : set - 1);
  const lastOf = (set) => (exact ? ranked.map((_, k) => k).filter((k) => (set >> k) & 1) : [set - 1]);
  const best = new Map([[0, places.map((_, i) => (i === 0 ? 0 : -Infinity))]]);
  for (let set = 1; set <= everyone; set++) {
    const score = places.map(() => -Infinity);
    for (const k of lastOf(set)) {
      const before = best.get(without(set, k));
      let open = -Infinity;
      before.forEach((value, i) => {
        open = Math.max(open, value - below[k][i]);
        score[i] = Math.max(score[i], value, below[k][i] + open - 1);
      });
    }
    best.set(set, score);
  }

  // back through the table: where each interval of the best rule starts
  const starts = [];
  let at = places.length - 1;
  let set = everyone;
  while (set > 0) {
    for (const k of lastOf(set).reverse()) {
      const before = best.get(without(set, k));
      const target = best.get(set)[at];
      let from = before[at] === target ? at : -1;
      for (let j = at - 1; from < 0 && j >= 0; j--) {
        if (before[j] + below[k][at] - below[k][j] - 1 === target) from = j;
      }
      if (from < 0) continue;
      if (from < at) starts.push(from);
      at = from;
      set = without(set, k);
      break;
    }
  }
  const right = Math.round((best.get(everyone).at(-1) + starts.length) / hit);
  const cuts = starts.filter((i) => i > 0).map((i) => (items[places[i] - 1].value + items[places[i]].value) / 2);
  return { right, of: n, accuracy: right / n, cuts: cuts.sort((a, b) => a - b) };
}

// the whole example at one setting; mode "joint" uses one mean, variance, gamma and beta for all
function transform(input, { mode, gamma, beta, eps }) {
  const all = input.flat();
  const joint = { mean: mean(all), variance: variance(all) };
  const z = input.map((values) => {
    const from = mode === "joint" ? joint : { mean: mean(values), variance: variance(values) };
    return standardise(values, from.mean, from.variance, eps);
  });
  const y = z.map((values, k) => affine(values, gamma[k], beta[k]));
  return { input, z, y };
}

// the share of class signal that batches of m leave, r = excess chance of meeting one's own class
const signalLeft = (r, m) => (1 - r) * (1 - 1 / m);

// share of a z-histogram with gamma * z + beta > 0; a bin that the gate cuts counts in proportion
function firing(counts, edges, gamma, beta) {
  const total = counts.reduce((sum, c) => sum + c, 0);
  if (total === 0) return NaN;
  if (gamma === 0) return beta > 0 ? 1 : 0;
  const gate = -beta / gamma;
  let above = 0;
  counts.forEach((count, b) => {
    const part = (edges[b + 1] - gate) / (edges[b + 1] - edges[b]);
    above += count * Math.min(1, Math.max(0, part));
  });
  return gamma > 0 ? above / total : 1 - above / total;
}

// mutual information in bits between the class and "the gate is open"
function gateInformation(shares, weights) {
  const entropy = (p) => (p <= 0 || p >= 1 ? 0 : -p * Math.log2(p) - (1 - p) * Math.log2(1 - p));
  const total = weights.reduce((sum, w) => sum + w, 0);
  const open = shares.reduce((sum, p, k) => sum + (p * weights[k]) / total, 0);
  return entropy(open) - shares.reduce((sum, p, k) => sum + (entropy(p) * weights[k]) / total, 0);
}
