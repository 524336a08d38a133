// The loops of the lens: what each image holds per channel, histograms, moments of groups.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "statistics.h"
#include "tensors.h"

namespace normscope {
namespace {

void check(const Tensor& t, at::ScalarType dtype, at::IntArrayRef sizes) {
  TORCH_CHECK(readable(t) && t.is_contiguous() && t.scalar_type() == dtype && t.sizes() == sizes,
              "the lens's loops take contiguous CPU tensors of fitting shapes and dtypes");
}

template <class F>
void with_values(const Tensor& t, F f) {
  t.scalar_type() == at::kDouble ? f(t.const_data_ptr<double>()) : f(t.const_data_ptr<float>());
}

constexpr int LANES = 8;  // sums side by side, as each waits for the one before it

// Mean, m2 and how many values are above 0 of each row of rows (N, C, P), what lies at some places
// of each, and whether all m2 are finite.
std::tuple<Tensor, Tensor, Tensor, Tensor, bool> sweep(const Tensor& rows, const Tensor& places) {
  TORCH_CHECK(rows.dim() == 3 && (rows.scalar_type() == at::kFloat || rows.scalar_type() == at::kDouble));
  const int64_t n = rows.size(0), c = rows.size(1), length = rows.size(2);
  check(rows, rows.scalar_type(), rows.sizes());
  TORCH_CHECK(length > 0, "there are no positions");
  const int64_t counted = places.numel();
  check(places, at::kLong, {counted});
  const int64_t* place = places.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < counted; ++i) TORCH_CHECK(place[i] >= 0 && place[i] < length);
  const Tensor mean = at::empty({n, c}, at::kDouble), m2 = at::empty({n, c}, at::kDouble);
  const Tensor fired = at::empty({n, c}, at::kLong), taken = at::empty({n, c, counted}, rows.options());
  double *means = mean.mutable_data_ptr<double>(), *m2s = m2.mutable_data_ptr<double>();
  int64_t* above = fired.mutable_data_ptr<int64_t>();
  with_values(rows, [&](auto* values) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(values)>>;
    T* into = taken.mutable_data_ptr<T>();
    parallel(n * c, length, [&](int64_t low, int64_t high) {
      for (int64_t r = low; r < high; ++r) {
        const T* row = values + r * length;
        const double shift = row[0];  // one of them, so little cancels
        double totals[LANES] = {}, squares[LANES] = {};
        int32_t counts[LANES] = {};
        int64_t i = 0;
        for (; i + LANES <= length; i += LANES) {
#pragma omp simd
          for (int lane = 0; lane < LANES; ++lane) {
            const double step = double(row[i + lane]) - shift;
            totals[lane] += step;
            squares[lane] += step * step;
            counts[lane] += row[i + lane] > 0;
          }
        }
        double total = 0, square = 0;
        int64_t positive = 0;
        for (int lane = 0; lane < LANES; ++lane) {
          total += totals[lane];
          square += squares[lane];
          positive += counts[lane];
        }
        for (; i < length; ++i) {
          const double step = double(row[i]) - shift;
          total += step;
          square += step * step;
          positive += row[i] > 0;
        }
        const double spread = square - total * (total / length);
        means[r] = shift + total / length;
        m2s[r] = spread < 0 ? 0.0 : spread;  // NaN stays
        above[r] = positive;
        for (int64_t at = 0; at < counted; ++at) into[r * counted + at] = row[place[at]];
      }
    });
  });
  const bool finite = std::all_of(m2s, m2s + n * c, [](double value) { return std::isfinite(value); });
  return {mean, m2, fired, taken, finite};
}

constexpr int64_t COUNTED = 16;  // channels counted together: their counts stay in the cache

// What is counted: the class of each row, or of each place in it, below 0 where it has none.
struct Labels {
  const int64_t* of;
  bool by_place;
};

template <class T, class N>
void count(const T* values, int64_t samples, int64_t all, int64_t places, const double* mean,
           const double* scale, int64_t step, Labels labels, const int64_t* channels,
           int64_t counted, N* counts, int64_t bins) {
  // channels are shared out, so that a channel's counts belong to one thread
  const int64_t blocks = (counted + COUNTED - 1) / COUNTED;
  parallel(blocks, COUNTED * samples * places, [&](int64_t low, int64_t high) {
    std::vector<int32_t> found(places);
    const double middle = bins / 2.0, last = bins - 1.0;
    for (int64_t block = low; block < high; ++block) {
      const int64_t end = std::min(counted, (block + 1) * COUNTED);
      for (int64_t n = 0; n < samples; ++n) {
        if (!labels.by_place && labels.of[n] < 0) continue;
        for (int64_t h = block * COUNTED; h < end; ++h) {
          const T* here = values + (n * all + channels[h]) * places;
          const double centre = mean[n * step + channels[h]], factor = scale[n * step + channels[h]];
#pragma omp simd
          for (int64_t i = 0; i < places; ++i) {
            double place = (double(here[i]) - centre) * factor + middle;
            place = place > 0 ? place : 0.0;  // NaN too
            found[i] = int32_t(place < last ? place : last);
          }
          const auto cell = [&](int64_t k) { return counts + (k * counted + h) * bins; };
          if (labels.by_place) {
            const int64_t* own = labels.of + n * places;
            for (int64_t i = 0; i < places; ++i) {
              if (own[i] >= 0) ++cell(own[i])[found[i]];
            }
          } else {
            N* of_class = cell(labels.of[n]);
            for (int64_t i = 0; i < places; ++i) ++of_class[found[i]];
          }
        }
      }
    }
  });
}

// Count the bins (x - mean) * scale + bins / 2 of some channels of taken (N, C, P) into histogram
// (K, channels, bins). mean and scale are (N, C), or (C) for all samples; labels (N), or (N, P) of
// each value, below 0 where nothing is counted.
void count_bins(const Tensor& taken, const Tensor& mean, const Tensor& scale, const Tensor& labels,
                const Tensor& channels, const Tensor& histogram) {
  TORCH_CHECK(taken.dim() == 3 && histogram.dim() == 3 && histogram.size(2) > 0);
  TORCH_CHECK(taken.scalar_type() == at::kFloat || taken.scalar_type() == at::kDouble);
  const int64_t n = taken.size(0), c = taken.size(1), places = taken.size(2);
  const int64_t k = histogram.size(0), counted = channels.numel(), bins = histogram.size(2);
  check(taken, taken.scalar_type(), taken.sizes());
  const bool shared = mean.dim() == 1;  // one map for all samples
  for (const Tensor& t : {mean, scale}) {
    shared ? check(t, at::kDouble, {c}) : check(t, at::kDouble, {n, c});
  }
  check(channels, at::kLong, {counted});
  const bool by_place = labels.dim() == 2;
  by_place ? check(labels, at::kLong, {n, places}) : check(labels, at::kLong, {n});
  const bool small = histogram.scalar_type() == at::kInt;
  check(histogram, small ? at::kInt : at::kLong, {k, counted, bins});
  const int64_t *label = labels.const_data_ptr<int64_t>(), *of = channels.const_data_ptr<int64_t>();
  TORCH_CHECK(std::all_of(label, label + labels.numel(), [=](int64_t i) { return i < k; }),
              "no such class");
  TORCH_CHECK(std::all_of(of, of + counted, [=](int64_t i) { return i >= 0 && i < c; }),
              "no such channel");
  with_values(taken, [&](auto* values) {
    const double *means = mean.const_data_ptr<double>(), *scales = scale.const_data_ptr<double>();
    const auto into = [&](auto* counts) {
      count(values, n, c, places, means, scales, shared ? 0 : c, Labels{label, by_place}, of,
            counted, counts, bins);
    };
    small ? into(histogram.mutable_data_ptr<int32_t>()) : into(histogram.mutable_data_ptr<int64_t>());
  });
}

// Add how many values of each image are above 0, (N, C), to those of its class, and the squared
// share of them, times how many there are, to rate_square (C).
void count_active(const Tensor& fired, const Tensor& sizes, const Tensor& labels,
                  const Tensor& active, const Tensor& rate_square) {
  TORCH_CHECK(fired.dim() == 2 && active.dim() == 2);
  const int64_t n = fired.size(0), c = fired.size(1), k = active.size(0);
  check(fired, at::kLong, {n, c});
  check(sizes, at::kDouble, {n});
  check(labels, at::kLong, {n});
  const bool small = active.scalar_type() == at::kInt;
  check(active, small ? at::kInt : at::kLong, {k, c});
  check(rate_square, at::kDouble, {c});
  const int64_t *above = fired.const_data_ptr<int64_t>(), *label = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i) TORCH_CHECK(label[i] >= 0 && label[i] < k, "no such class");
  const double* size = sizes.const_data_ptr<double>();
  double* squares = rate_square.mutable_data_ptr<double>();
  const auto add = [&](auto* counts) {
    for (int64_t i = 0; i < n; ++i) {
#pragma omp simd
      for (int64_t j = 0; j < c; ++j) {
        const int64_t own = above[i * c + j];
        counts[label[i] * c + j] += own;
        squares[j] += double(own) * double(own) / size[i];
      }
    }
  };
  small ? add(active.mutable_data_ptr<int32_t>()) : add(active.mutable_data_ptr<int64_t>());
}

// Merge images (or regions of them), in their order, into the moments of their groups.
//
// sizes (N): values of each. spread (K, C), or (1, C) for all groups together. Returns rows (N, C)
// whose outer products add up to the growth of the scatter of the means; traces (W, K) grow by the
// sum of the squares of each row, weighted by every row of weights (W, C).
Tensor absorb(const Tensor& mean, const Tensor& m2, const Tensor& sizes, const Tensor& groups,
              const Tensor& count, const Tensor& held, const Tensor& spread, const Tensor& weights,
              const Tensor& traces) {
  TORCH_CHECK(mean.dim() == 2 && count.dim() == 1 && spread.dim() == 2 && weights.dim() == 2);
  const int64_t n = mean.size(0), c = mean.size(1), k = count.size(0), w = weights.size(0);
  for (const Tensor& t : {mean, m2}) check(t, at::kDouble, {n, c});
  check(held, at::kDouble, {k, c});
  check(spread, at::kDouble, {spread.size(0) == 1 ? 1 : k, c});
  check(count, at::kDouble, {k});
  check(sizes, at::kDouble, {n});
  check(groups, at::kLong, {n});
  check(weights, at::kDouble, {w, c});
  check(traces, at::kDouble, {w, k});
  const Tensor rows = at::empty({n, c}, at::kDouble);
  const int64_t* group = groups.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i) TORCH_CHECK(group[i] >= 0 && group[i] < k, "no such group");
  const double *means = mean.const_data_ptr<double>(), *m2s = m2.const_data_ptr<double>();
  const double *size = sizes.const_data_ptr<double>(), *weight = weights.const_data_ptr<double>();
  double *counts = count.mutable_data_ptr<double>(), *into = rows.mutable_data_ptr<double>();
  double* sums = traces.mutable_data_ptr<double>();
  for (int64_t i = 0; i < n; ++i) {
    double *own = held.mutable_data_ptr<double>() + group[i] * c, *row = into + i * c;
    double *own_m2 = spread.mutable_data_ptr<double>() + (spread.size(0) == 1 ? 0 : group[i] * c);
    const double before = counts[group[i]], share = size[i] / (before + size[i]);
    const double root = std::sqrt(before * share);
#pragma omp simd
    for (int64_t j = 0; j < c; ++j) {
      const double step = means[i * c + j] - own[j];
      own[j] += step * share;
      own_m2[j] += m2s[i * c + j] + step * step * before * share;
      row[j] = step * root;
    }
    for (int64_t of = 0; of < w; ++of) {
      double total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t j = 0; j < c; ++j) total += row[j] * row[j] * weight[of * c + j];
      sums[of * k + group[i]] += total;
    }
    counts[group[i]] += size[i];
  }
  return rows;
}

TORCH_LIBRARY_FRAGMENT(normscope, m) {
  m.def("sweep(Tensor rows, Tensor places) -> (Tensor, Tensor, Tensor, Tensor, bool)", sweep);
  m.def("count_bins(Tensor taken, Tensor mean, Tensor scale, Tensor labels, Tensor channels, "
        "Tensor(a!) histogram) -> ()", count_bins);
  m.def("count_active(Tensor fired, Tensor sizes, Tensor labels, Tensor(a!) active, "
        "Tensor(b!) rate_square) -> ()", count_active);
  m.def("absorb(Tensor mean, Tensor m2, Tensor sizes, Tensor groups, Tensor(a!) count, "
        "Tensor(b!) held, Tensor(c!) spread, Tensor weights, Tensor(d!) traces) -> Tensor",
        absorb);
}

}  // namespace
}  // namespace normscope
