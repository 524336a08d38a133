// Between sums and map: chunks merged, small groups filled up, coefficients, means of gradients.
#pragma once

#include <ATen/Parallel.h>

#include <cmath>

#include "call.h"

namespace normscope {

constexpr int64_t GRAIN = 16384;  // values that are worth a thread
constexpr int64_t TABLE_GRAIN = 4096;  // numbers in tables that are

// The threads of OpenMP do not survive a fork; a child that asked for them would wait for ever.
bool is_forked_child();

// f(begin, end) over all items, on torch's threads.
template <class F>
void parallel(int64_t items, int64_t values_of_item, F f, int64_t worth = GRAIN) {
  if (items <= 0) return;
  const int64_t grain = std::max<int64_t>(1, worth / std::max<int64_t>(1, values_of_item));
  if (items <= grain || is_forked_child()) return f(int64_t(0), items);
  at::parallel_for(0, items, grain, f);
}

// How many values there are, their mean and their centred sum of squares.
struct Set {
  double n = 0, mean = 0, m2 = 0;

  // Merge another (Chan, Golub, LeVeque 1979).
  void add(double more, double other, double other_m2) {
    if (more == 0) return;
    if (n == 0) {
      *this = {more, other, other_m2};
      return;
    }
    const double share = more / (n + more), step = other - mean;
    mean = mean + step * share;
    m2 = (m2 + other_m2) + step * step * share * n;
    n += more;
  }
};

// 1 / sqrt(var + eps). A checkpoint may hold a variance below zero; for every valid one the clamp
// changes nothing.
inline double inverse_deviation(double var, double eps) {
  return 1 / std::sqrt((var < 0 ? 0.0 : var) + eps);
}

// From the batch's moments of a group's channels to what standardises them. A group below the
// least count is filled up with pseudo-values of its running mean and variance.
inline void finish(const Call& call, int64_t k, int64_t low, int64_t high) {
  if (call.rstd == nullptr) return;
  const Plan& plan = call.plan;
  const int64_t row = k * plan.c;
  const double count = plan.count[k], filled = plan.filled[k], eps = call.eps;
  const double *mean = call.batch_mean + row, *m2 = call.batch_m2 + row;
  double *into = call.mean + row, *rstd = call.rstd + row;
  if (count < filled && call.running_mean != nullptr) {
    const int64_t prior = call.running_rows > 1 ? row : 0;
    for (int64_t c = low; c < high; ++c) {
      Set all{count, mean[c], m2[c]};
      const double missing = filled - count;
      all.add(missing, call.running_mean[prior + c], call.running_var[prior + c] * missing);
      into[c] = all.mean;
      rstd[c] = inverse_deviation(all.m2 / filled, eps);
    }
    return;
  }
  for (int64_t c = low; c < high; ++c) into[c] = mean[c];
  for (int64_t c = low; c < high; ++c) rstd[c] = inverse_deviation(m2[c] / filled, eps);
}

// Coefficients of some channels in group r, side by side. m is the nearest float32 to the mean, so
// that x - m is exact near it; what is lost goes to b and gc. gb and gc are 0 where the statistics
// are constants.
template <class W>
void coefficients(const Call& call, int64_t r, int64_t low, int64_t high, W* m, W* a, W* b, W* gb,
                  W* gc) {
  const int64_t table = (call.plan.k > 1 ? r : 0) * call.plan.c;
  const int64_t affine = (call.affine_rows > 1 ? r : 0) * call.plan.c;
#pragma omp simd
  for (int64_t c = low; c < high; ++c) {
    const double mean = call.mean[table + c], rstd = call.rstd[table + c];
    const double nearest = double(float(mean)), m_ = std::isfinite(nearest) ? nearest : mean;
    const double a_ = call.weight == nullptr ? rstd : call.weight[affine + c] * rstd;
    const double b_ = call.bias == nullptr ? 0.0 : call.bias[affine + c];
    m[c - low] = W(m_);
    a[c - low] = W(a_);
    b[c - low] = W(b_ + (m_ - mean) * a_);
    if (gb == nullptr) continue;
    const bool batch = call.mean_g != nullptr;
    const double slope = batch ? -rstd * rstd * call.mean_g_xhat[table + c] : 0.0;
    const double constant = batch ? -rstd * call.mean_g[table + c] + (m_ - mean) * slope : 0.0;
    gb[c - low] = W(slope);
    gc[c - low] = W(constant);
  }
}

// From sums of g (x - m) about m to sums of g xhat.
inline double about_mean(const Call& call, int64_t r, int64_t c, double s, double q) {
  const int64_t here = (call.plan.k > 1 ? r : 0) * call.plan.c + c;
  const double mean = call.mean[here], nearest = double(float(mean));
  const double m = std::isfinite(nearest) ? nearest : mean;
  return (q + (m - mean) * s) * call.rstd[here];
}

// Means of weight * g and weight * g * xhat over group k.
inline void finish_gradients(const Call& call, int64_t k, int64_t low, int64_t high) {
  if (call.own_mean_g == nullptr) return;
  const Plan& plan = call.plan;
  const int64_t first = plan.k > 1 ? k : 0, last = plan.k > 1 ? k + 1 : plan.r;
  const double share = 1 / plan.filled[k];
  for (int64_t c = low; c < high; ++c) {
    double mean = 0, mean_xhat = 0;
    for (int64_t r = first; r < last; ++r) {
      const int64_t row = (call.affine_rows > 1 ? r : 0) * plan.c + c;
      const double weight = call.weight == nullptr ? 1.0 : call.weight[row];
      mean += weight * call.sum_g[r * plan.c + c];
      mean_xhat += weight * call.sum_g_xhat[r * plan.c + c];
    }
    call.own_mean_g[k * plan.c + c] = mean * share;
    call.own_mean_g_xhat[k * plan.c + c] = mean_xhat * share;
  }
}

// Moments of all chunks, (chunks, 2, C), into those of each group, and what follows.
inline void merge_moments(const Call& call, const double* partial) {
  const Plan& plan = call.plan;
  parallel(plan.c, 2 * int64_t(plan.chunks.size()) + plan.k, [&](int64_t low, int64_t high) {
    for (int64_t k = 0; k < plan.k; ++k) {
      double *mean = call.batch_mean + k * plan.c, *m2 = call.batch_m2 + k * plan.c;
      const auto each = [&](auto f) {
        for (int64_t i = plan.begin(k); i < plan.end(k); ++i) {
          const double n = plan.chunks[i].values, *means = partial + 2 * i * plan.c;
          for (int64_t c = low; c < high; ++c) f(c, n, means[c], means[plan.c + c]);
        }
      };
      if (plan.end(k) - plan.begin(k) == 1) {
        each([&](int64_t c, double, double part, double part_m2) {
          mean[c] = part;
          m2[c] = part_m2;
        });
        finish(call, k, low, high);
        continue;
      }
      for (double* table : {mean, m2}) std::fill(table + low, table + high, 0.0);
      const double total = std::max(plan.count[k], 1.0);
      each([&](int64_t c, double n, double part, double) { mean[c] += n / total * part; });
      each([&](int64_t c, double n, double part, double part_m2) {
        const double step = part - mean[c];
        m2[c] += part_m2 + n * step * step;
      });
      finish(call, k, low, high);
    }
  }, TABLE_GRAIN);
}

// Sums of all chunks, (chunks, 2, C), into those of each group, and what follows.
inline void merge_gradients(const Call& call, const double* partial) {
  const Plan& plan = call.plan;
  parallel(plan.c, 2 * int64_t(plan.chunks.size()) + plan.r, [&](int64_t low, int64_t high) {
    for (int64_t r = 0; r < plan.r; ++r) {
      double *g = call.sum_g + r * plan.c, *g_xhat = call.sum_g_xhat + r * plan.c;
      for (int64_t c = low; c < high; ++c) g[c] = g_xhat[c] = 0;
      for (int64_t i = plan.first_chunk[r]; i < plan.first_chunk[r + 1]; ++i) {
        const double* row = partial + 2 * i * plan.c;
        for (int64_t c = low; c < high; ++c) g[c] += row[c];
        for (int64_t c = low; c < high; ++c) g_xhat[c] += row[plan.c + c];
      }
    }
    for (int64_t k = 0; k < plan.k; ++k) finish_gradients(call, k, low, high);
  }, TABLE_GRAIN);
}

}  // namespace normscope
