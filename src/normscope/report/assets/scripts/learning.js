// Gradient descent on gamma and beta in three ways, step for step as normscope.lesson does it.

const RATE = 0.1;
const MOMENTUM = 0.9; // of the joint form, whose loss is flat where the gate is closed

const softmax = (logits) => {
  const top = Math.max(...logits);
  const powers = logits.map((v) => Math.exp(v - top));
  const total = powers.reduce((sum, v) => sum + v, 0);
  return powers.map((v) => v / total);
};

// from `start`, a list of numbers; what stood at the recorded steps
function descend(start, gradient, recorded, { momentum = 0, pace = 1 } = {}) {
  let at = [...start];
  let velocity = at.map(() => 0);
  const path = [];
  const last = recorded.at(-1);
  for (let step = 0; step <= last; step++) {
    if (step === recorded[path.length]) path.push(at);
    if (step === last) break;
    const slope = gradient(at);
    velocity = velocity.map((v, i) => momentum * v + pace * slope[i]);
    at = at.map((v, i) => v - RATE * velocity[i]);
  }
  return path;
}

const ownStandard = (classes, eps) => classes.map((c) => standardise(c, mean(c), variance(c), eps));
function jointStandard(classes, eps) {
  const all = classes.flat();
  const [centre, spread] = [mean(all), variance(all)];
  return classes.map((c) => standardise(c, centre, spread, eps));
}

// gamma and beta by class; the loss is the mean over classes of the squared 2-Wasserstein distance
function towardsDistribution(classes, eps, start, recorded) {
  const K = classes.length;
  const z = ownStandard(classes, eps);
  const x = classes.map((c) => c.toSorted((a, b) => a - b));
  // the differences of y and x in the order of y
  const away = (at, k) => {
    const y = affine(z[k], at[k], at[K + k]);
    const order = y.map((_, i) => i).sort((i, j) => y[i] - y[j]);
    const difference = [];
    order.forEach((i, place) => (difference[i] = y[i] - x[k][place]));
    return difference;
  };
  const gradient = (at) => {
    const slope = new Array(2 * K).fill(0);
    z.forEach((values, k) => {
      away(at, k).forEach((d, i) => {
        slope[k] += (2 * d * values[i]) / values.length / K;
        slope[K + k] += (2 * d) / values.length / K;
      });
    });
    return slope;
  };
  return {
    path: descend([...start.gamma, ...start.beta], gradient, recorded, { pace: K }),
    loss: (at) => mean(z.map((_, k) => mean(away(at, k).map((d) => d * d)))),
    output: (at) => z.map((values, k) => affine(values, at[k], at[K + k])),
    parameters: (at) => ({ gamma: at.slice(0, K), beta: at.slice(K) }),
  };
}

// gamma and beta by class; a reader expects each class around its template, with deviation 1
function forClassification(classes, eps, start, recorded) {
  const K = classes.length;
  const z = ownStandard(classes, eps);
  const templates = start.templates;
  const count = classes.flat().length;
  const guess = (y) => softmax(templates.map((t) => y * t - (t * t) / 2));
  const gradient = (at) => {
    const slope = new Array(2 * K).fill(0);
    z.forEach((values, k) => {
      for (const value of values) {
        const p = guess(at[k] * value + at[K + k]);
        const push = p.reduce((sum, v, j) => sum + (v - (j === k)) * templates[j], 0) / count;
        slope[k] += push * value;
        slope[K + k] += push;
      }
    });
    return slope;
  };
  return {
    path: descend([...start.gamma, ...start.beta], gradient, recorded, { pace: K }),
    loss: (at) =>
      mean(z.flatMap((values, k) => values.map((v) => -Math.log(guess(at[k] * v + at[K + k])[k])))),
    output: (at) => z.map((values, k) => affine(values, at[k], at[K + k])),
    parameters: (at) => ({ gamma: at.slice(0, K), beta: at.slice(K) }),
    answer: (y) => templates.reduce((best, t, k) => (Math.abs(y - t) < Math.abs(y - templates[best]) ? k : best), 0),
  };
}

// one gamma and beta for all classes, a ReLU, and a linear head that starts at zero
function jointly(classes, eps, start, recorded) {
  const K = classes.length;
  const z = jointStandard(classes, eps);
  const count = classes.flat().length;
  const relu = (at, value) => Math.max(0, at[0] * value + at[1]);
  const logits = (at, a) => classes.map((_, k) => a * at[2 + k] + at[2 + K + k]);
  const gradient = (at) => {
    const slope = new Array(2 + 2 * K).fill(0);
    z.forEach((values, k) => {
      for (const value of values) {
        const a = relu(at, value);
        const p = softmax(logits(at, a));
        let push = 0;
        p.forEach((v, j) => {
          const d = (v - (j === k)) / count;
          slope[2 + j] += d * a;
          slope[2 + K + j] += d;
          push += d * at[2 + j];
        });
        if (a > 0) {
          slope[0] += push * value;
          slope[1] += push;
        }
      }
    });
    return slope;
  };
  const answer = (at, value) => {
    const scores = logits(at, relu(at, value));
    return scores.indexOf(Math.max(...scores));
  };
  const begin = [...start.gamma, ...start.beta, ...new Array(2 * K).fill(0)];
  return {
    z,
    path: descend(begin, gradient, recorded, { momentum: MOMENTUM }),
    loss: (at) =>
      mean(z.flatMap((values, k) => values.map((v) => -Math.log(softmax(logits(at, relu(at, v)))[k])))),
    output: (at) => z.map((values) => values.map((v) => relu(at, v))),
    parameters: (at) => ({ gamma: [at[0]], beta: [at[1]] }),
    right: (at) => z.reduce((sum, values, k) => sum + values.filter((v) => answer(at, v) === k).length, 0),
  };
}

const WAYS = { distribution: towardsDistribution, classification: forClassification, joint: jointly };

// the recorded start, made to fit numbers and classes that the reader has changed since
function fitted(name, start, classes, eps) {
  const K = classes.length;
  if (name !== "joint") {
    const grown = (list, other) => classes.map((_, k) => list[k] ?? other);
    // classes that came later get the places beyond, two deviations apart
    const far = Math.max(...(start.templates.length ? start.templates : [0]));
    const beyond = classes.map((_, k) => far + 2 * (k - start.templates.length + 1));
    const templates = classes.map((_, k) => start.templates[k] ?? beyond[k]);
    return { gamma: grown(start.gamma, 1), beta: grown(start.beta, 0), templates };
  }
  // the gate between the same two values, counted from the lowest
  const z = jointStandard(classes, eps).flat().sort((a, b) => a - b);
  const below = Math.min(start.below, Math.floor(z.length / 2));
  const gamma = start.gamma[0];
  return { gamma: [gamma], beta: [(-gamma * (z[below - 1] + z[below])) / 2] };
}

function learnAs(recovery, start, classes, eps) {
  const begin = fitted(recovery.name, recovery.starts[start], classes, eps);
  return WAYS[recovery.name](classes, eps, begin, recovery.steps);
}
