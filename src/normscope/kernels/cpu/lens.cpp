// The loops of the lens: what each image holds per channel, histograms, moments of groups.
#include <torch/library.h>

#include <algorithm>
#include <cmath>

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

// Mean, m2 and how many values are above 0 of each row of rows (N, C, P), and some values of each.
void sweep(const Tensor& rows, const Tensor& mean, const Tensor& m2, const Tensor& fired,
           const Tensor& places, const Tensor& taken) {
  TORCH_CHECK(rows.dim() == 3 && (rows.scalar_type() == at::kFloat || rows.scalar_type() == at::kDouble));
  const int64_t n = rows.size(0), c = rows.size(1), length = rows.size(2), counted = places.numel();
  check(rows, rows.scalar_type(), rows.sizes());
  for (const Tensor& t : {mean, m2}) check(t, at::kDouble, {n, c});
  check(fired, at::kLong, {n, c});
  check(places, at::kLong, {counted});
  check(taken, rows.scalar_type(), {n, c, counted});
  TORCH_CHECK(length > 0, "there are no positions");
  const int64_t* place = places.const_data_ptr<int64_t>();
  bool in_order = counted == length;
  for (int64_t i = 0; i < counted; ++i) {
    TORCH_CHECK(place[i] >= 0 && place[i] < length);
    in_order = in_order && place[i] == i;
  }
  double *means = mean.mutable_data_ptr<double>(), *m2s = m2.mutable_data_ptr<double>();
  int64_t* above = fired.mutable_data_ptr<int64_t>();
  with_values(rows, [&](auto* values) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(values)>>;
    T* into = taken.mutable_data_ptr<T>();
    parallel(n * c, length, [&](int64_t low, int64_t high) {
      for (int64_t r = low; r < high; ++r) {
        const T* row = values + r * length;
        const double shift = row[0];  // one of them, so little cancels
        double total = 0, square = 0;
        int32_t positive = 0;
        // more lanes than a register has: each sum waits for the one before it
#pragma omp simd simdlen(16) reduction(+ : total, square)
        for (int64_t i = 0; i < length; ++i) {
          const double step = double(row[i]) - shift;
          total += step;
          square += step * step;
        }
#pragma omp simd simdlen(32) reduction(+ : positive)
        for (int64_t i = 0; i < length; ++i) positive += row[i] > 0;
        const double spread = square - total * (total / length);
        means[r] = shift + total / length;
        m2s[r] = spread < 0 ? 0.0 : spread;  // NaN stays
        above[r] = positive;
        if (in_order) {
          std::copy(row, row + length, into + r * counted);
          continue;
        }
        for (int64_t i = 0; i < counted; ++i) into[r * counted + i] = row[place[i]];  // in the cache
      }
    });
  });
}

constexpr int64_t COUNTED = 16;  // channels counted together: their counts stay in the cache

template <class T, class N>
void count(const T* values, const double* mean, const double* scale, int64_t step,
           const int64_t* labels, N* counts, int64_t samples, int64_t channels, int64_t positions,
           int64_t bins) {
  // channels are shared out, so that a channel's counts belong to one thread
  const int64_t blocks = (channels + COUNTED - 1) / COUNTED;
  parallel(blocks, COUNTED * samples * positions, [&](int64_t low, int64_t high) {
    std::vector<int32_t> found(positions);
    const double middle = bins / 2.0, last = bins - 1.0;
    for (int64_t block = low; block < high; ++block) {
      const int64_t end = std::min(channels, (block + 1) * COUNTED);
      for (int64_t n = 0; n < samples; ++n) {
        for (int64_t c = block * COUNTED; c < end; ++c) {
          const T* here = values + (n * channels + c) * positions;
          const double centre = mean[n * step + c], factor = scale[n * step + c];
#pragma omp simd
          for (int64_t i = 0; i < positions; ++i) {
            double place = (double(here[i]) - centre) * factor + middle;
            place = place > 0 ? place : 0.0;  // NaN too
            found[i] = int32_t(place < last ? place : last);
          }
          N* cell = counts + (labels[n] * channels + c) * bins;
          for (int64_t i = 0; i < positions; ++i) ++cell[found[i]];
        }
      }
    }
  });
}

// Count the bins (x - mean) * scale + bins / 2 of taken (N, C, P) into histogram (K, C, bins);
// mean and scale are (N, C), or (C) for all samples.
void count_bins(const Tensor& taken, const Tensor& mean, const Tensor& scale, const Tensor& labels,
                const Tensor& histogram) {
  TORCH_CHECK(taken.dim() == 3 && histogram.dim() == 3 && histogram.size(2) > 0);
  TORCH_CHECK(taken.scalar_type() == at::kFloat || taken.scalar_type() == at::kDouble);
  const int64_t n = taken.size(0), c = taken.size(1), k = histogram.size(0), bins = histogram.size(2);
  check(taken, taken.scalar_type(), taken.sizes());
  const bool shared = mean.dim() == 1;  // one map for all samples
  for (const Tensor& t : {mean, scale}) {
    shared ? check(t, at::kDouble, {c}) : check(t, at::kDouble, {n, c});
  }
  check(labels, at::kLong, {n});
  const bool small = histogram.scalar_type() == at::kInt;
  check(histogram, small ? at::kInt : at::kLong, {k, c, bins});
  const int64_t* label = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i) TORCH_CHECK(label[i] >= 0 && label[i] < k, "no such class");
  with_values(taken, [&](auto* values) {
    const double *means = mean.const_data_ptr<double>(), *scales = scale.const_data_ptr<double>();
    const auto into = [&](auto* counts) {
      count(values, means, scales, shared ? 0 : c, label, counts, n, c, taken.size(2), bins);
    };
    small ? into(histogram.mutable_data_ptr<int32_t>()) : into(histogram.mutable_data_ptr<int64_t>());
  });
}

// Merge images (or regions of them), in their order, into the moments of their groups.
//
// sizes (N): values of each. spread (K, C), or (1, C) for all groups together. rows (N, C) are
// written whose outer products add up to the growth of the scatter of the means; traces (W, K)
// grow by the sum of the squares of each row, weighted by every row of weights (W, C).
void absorb(const Tensor& mean, const Tensor& m2, const Tensor& sizes, const Tensor& groups,
            const Tensor& count, const Tensor& held, const Tensor& spread, const Tensor& rows,
            const Tensor& weights, const Tensor& traces) {
  TORCH_CHECK(mean.dim() == 2 && count.dim() == 1 && spread.dim() == 2 && weights.dim() == 2);
  const int64_t n = mean.size(0), c = mean.size(1), k = count.size(0), w = weights.size(0);
  for (const Tensor& t : {mean, m2, rows}) check(t, at::kDouble, {n, c});
  check(held, at::kDouble, {k, c});
  check(spread, at::kDouble, {spread.size(0) == 1 ? 1 : k, c});
  check(count, at::kDouble, {k});
  check(sizes, at::kDouble, {n});
  check(groups, at::kLong, {n});
  check(weights, at::kDouble, {w, c});
  check(traces, at::kDouble, {w, k});
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
}

TORCH_LIBRARY_FRAGMENT(normscope, m) {
  m.def("sweep(Tensor rows, Tensor(a!) mean, Tensor(b!) m2, Tensor(c!) fired, Tensor places, "
        "Tensor(d!) taken) -> ()", sweep);
  m.def("count_bins(Tensor taken, Tensor mean, Tensor scale, Tensor labels, "
        "Tensor(a!) histogram) -> ()", count_bins);
  m.def("absorb(Tensor mean, Tensor m2, Tensor sizes, Tensor groups, Tensor(a!) count, "
        "Tensor(b!) held, Tensor(c!) spread, Tensor(d!) rows, Tensor weights, "
        "Tensor(e!) traces) -> ()", absorb);
}

}  // namespace
}  // namespace normscope
