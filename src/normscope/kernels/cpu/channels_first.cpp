// Loops over (N, C, S): the values of a channel in a sample lie side by side, as in NCHW.
//
// A cell, one channel in one group, goes through sums, statistics and map while its values are in
// the cache. Where there are few cells, threads share chunks instead: the numbers are the same.
#include <memory>
#include <vector>

#include "statistics.h"
#include "values.h"

namespace normscope {
namespace {

constexpr int64_t BLOCK = 1024;       // values that are picked by a mask at a time
constexpr int64_t CACHED = 16384;     // values that stay in the cache together
constexpr int64_t SHORT_ROW = 8192;   // bytes: rows up to this length are asked for ahead,
constexpr int64_t AHEAD = 8192;       // so many bytes

template <class T>
struct Cells {
  using W = Wide<T>;
  const Call& call;
  const Plan& plan = call.plan;
  const Loops<T>& loop = loops<false, T>(call.act, call.residual != nullptr);
  const T* x = static_cast<const T*>(call.x);
  const T* dy = static_cast<const T*>(call.dy);
  const T* residual = static_cast<const T*>(call.residual);
  T* out = static_cast<T*>(call.out);
  T* dresidual = static_cast<T*>(call.dresidual);
  const int64_t ahead =
      plan.s * int64_t(sizeof(T)) <= SHORT_ROW ? AHEAD / (plan.s * int64_t(sizeof(T))) : 0;

  int64_t row(const Plan::Unit& unit, int64_t c) const {
    return (unit.sample * plan.c + c) * plan.s + unit.first;
  }
  const bool* mask(const Plan::Unit& unit) const {
    return plan.mask == nullptr ? nullptr : plan.mask + unit.sample * plan.s + unit.first;
  }

  // A channel's rows lie far apart, and where they are short the processor does not see in time
  // which comes next.
  void fetch(const T* base, int64_t u, int64_t end, int64_t c) const {
    if (ahead == 0 || u + ahead >= end) return;
    const Plan::Unit unit = plan.unit(u + ahead);
    const char* start = reinterpret_cast<const char*>(base + row(unit, c));
    for (int64_t i = 0; i < unit.size * int64_t(sizeof(T)); i += 64) __builtin_prefetch(start + i);
  }

  // Those of n values that count.
  static int64_t pick(const T* from, const bool* mask, int64_t n, T* into) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (mask[i]) into[kept++] = from[i];
    }
    return kept;
  }

  // The first value that counts: being one of them, it bounds what cancels by count * eps.
  double shift(const Chunk& chunk, int64_t c) const {
    for (int64_t u = chunk.first; u < chunk.end; ++u) {
      const Plan::Unit unit = plan.unit(u);
      const bool* here = mask(unit);
      for (int64_t i = 0; i < unit.size; ++i) {
        if (here != nullptr && !here[i]) continue;
        const double value = number(x + row(unit, c) + i);
        return std::isfinite(value) ? value : 0.0;
      }
    }
    return 0;
  }

  Set moments(const Chunk& chunk, int64_t c) const {
    if (chunk.values == 0) return {};
    const double from = shift(chunk, c);
    double s = 0, q = 0;
    for (int64_t u = chunk.first; u < chunk.end; ++u) {
      const Plan::Unit unit = plan.unit(u);
      const T* here = x + row(unit, c);
      fetch(x, u, chunk.end, c);
      const bool* flags = mask(unit);
      if (flags == nullptr) {
        sums(here, unit.size, from, s, q);
        continue;
      }
      T buffer[BLOCK];
      for (int64_t i = 0; i < unit.size; i += BLOCK) {
        const int64_t n = std::min(BLOCK, unit.size - i);
        sums(buffer, pick(here + i, flags + i, n, buffer), from, s, q);
      }
    }
    return {chunk.values, from + s / chunk.values, q - s * (s / chunk.values)};
  }

  // The coefficients of some channels.
  struct Numbers {
    std::vector<W> held;
    W *m, *a, *b, *gb, *gc;
    explicit Numbers(int64_t n) : held(5 * n) {
      m = held.data(), a = m + n, b = a + n, gb = b + n, gc = gb + n;
    }
    Coefficients<W> of(int64_t i) const { return {m + i, a + i, b + i, gb + i, gc + i}; }
  };
  template <bool Backward>
  void prepare(int64_t r, int64_t low, int64_t high, Numbers& by) const {
    coefficients(call, r, low, high, by.m, by.a, by.b, Backward ? by.gb : nullptr, by.gc);
  }

  static void clear(const bool* flags, int64_t n, T* values) {
    for (int64_t i = 0; i < n; ++i) {
      if (!flags[i]) values[i] = T{};
    }
  }

  void map(int64_t u, int64_t c, const Coefficients<W>& by) const {
    const Plan::Unit unit = plan.unit(u);
    const int64_t start = row(unit, c);
    const bool* flags = mask(unit);
    loop.map(x + start, residual ? residual + start : nullptr, out + start, unit.size, by);
    if (flags != nullptr) clear(flags, unit.size, out + start);
  }

  // Sums of g and of g xhat of a chunk in a channel.
  void gradient_sums(const Chunk& chunk, int64_t c, const Coefficients<W>& by, double& g,
                     double& g_xhat) const {
    double s = 0, q = 0;
    for (int64_t u = chunk.first; u < chunk.end; ++u) {
      const Plan::Unit unit = plan.unit(u);
      const int64_t start = row(unit, c);
      fetch(x, u, chunk.end, c);
      fetch(dy, u, chunk.end, c);
      const T *row = x + start, *from = dy + start, *added = residual ? residual + start : nullptr;
      const bool* flags = mask(unit);
      if (flags == nullptr) {
        loop.gradient_sums(&row, &from, &added, 1, unit.size, by, &s, &q);
        continue;
      }
      T picked[BLOCK], gradient[BLOCK], beside[BLOCK];
      const T *xs = picked, *dys = gradient, *residuals = beside;
      for (int64_t i = 0; i < unit.size; i += BLOCK) {
        const int64_t n = std::min(BLOCK, unit.size - i);
        if (added) pick(added + i, flags + i, n, beside);
        pick(from + i, flags + i, n, gradient);
        const int64_t kept = pick(row + i, flags + i, n, picked);
        loop.gradient_sums(&xs, &dys, &residuals, 1, kept, by, &s, &q);
      }
    }
    g = s;
    g_xhat = about_mean(call, chunk.group, c, s, q);
  }

  void gradient_map(int64_t u, int64_t c, const Coefficients<W>& by) const {
    const Plan::Unit unit = plan.unit(u);
    const int64_t start = row(unit, c);
    const bool* flags = mask(unit);
    loop.gradient_map(x + start, dy + start, residual ? residual + start : nullptr, out + start,
                      residual ? dresidual + start : nullptr, unit.size, by);
    if (flags == nullptr) return;
    clear(flags, unit.size, out + start);
    if (residual) clear(flags, unit.size, dresidual + start);
  }

  template <bool Backward>
  void map_chunk(const Chunk& chunk, int64_t c, const Coefficients<W>& by) const {
    for (int64_t u = chunk.first; u < chunk.end; ++u) {
      fetch(out, u, chunk.end, c);
      if constexpr (Backward) {
        gradient_map(u, c, by);
      } else {
        map(u, c, by);
      }
    }
  }

  // In the order of memory: here nothing is to stay in the cache.
  template <bool Backward>
  void map_all() const {
    parallel(plan.n * plan.pieces * plan.c, plan.piece, [&](int64_t low, int64_t high) {
      Numbers numbers(plan.c);
      int64_t prepared = -1;
      auto chunk = plan.chunks.begin();
      for (int64_t i = low; i < high; ++i) {
        const int64_t u = i / plan.c, c = i % plan.c;
        if (i == low || c == 0) {
          while (chunk->end <= u) ++chunk;
          if (chunk->group != prepared) {
            prepare<Backward>(prepared = chunk->group, 0, plan.c, numbers);
          }
        }
        if constexpr (Backward) {
          gradient_map(u, c, numbers.of(c));
        } else {
          map(u, c, numbers.of(c));
        }
      }
    });
  }

  // All chunks of some channels in group k.
  template <bool Backward>
  void map_run(int64_t k, int64_t low, int64_t high, Numbers& numbers) const {
    for (int64_t r = plan.k > 1 ? k : 0; r < (plan.k > 1 ? k + 1 : plan.r); ++r) {
      prepare<Backward>(r, low, high, numbers);
      for (int64_t c = low; c < high; ++c) {
        for (int64_t i = plan.first_chunk[r]; i < plan.first_chunk[r + 1]; ++i) {
          map_chunk<Backward>(plan.chunks[i], c, numbers.of(c - low));
        }
      }
    }
  }

  // A cell takes a thread where there are enough of them.
  bool by_cell() const {
    const int64_t cells = plan.k * plan.c;
    return cells >= 4 * at::get_num_threads() || plan.size() <= GRAIN;
  }

  // f(k, low, high, numbers): channels of a group whose values stay in the cache together.
  template <class F>
  void each_run(F f) const {
    const int64_t cells = plan.k * plan.c, values = plan.size() / cells;
    const int64_t longest = std::max<int64_t>(1, CACHED / std::max<int64_t>(1, values));
    parallel(cells, 2 * values, [&](int64_t low, int64_t high) {
      Numbers numbers(std::min(longest, plan.c));
      while (low < high) {
        const int64_t k = low / plan.c, c = low % plan.c;
        const int64_t run = std::min({longest, high - low, plan.c - c});
        f(k, c, c + run, numbers);
        low += run;
      }
    });
  }

  template <class F>
  std::unique_ptr<double[]> each_chunk(F f) const {
    const int64_t chunks = plan.chunks.size();
    std::unique_ptr<double[]> partial(new double[2 * chunks * plan.c]);
    parallel(chunks * plan.c, plan.size() / (chunks * plan.c), [&](int64_t low, int64_t high) {
      for (int64_t i = low; i < high; ++i) {
        double* row = partial.get() + 2 * (i / plan.c) * plan.c + i % plan.c;
        f(plan.chunks[i / plan.c], i % plan.c, row[0], row[plan.c]);
      }
    });
    return partial;
  }

  void forward() const {
    if (call.batch_m2 == nullptr) return map_all<false>();
    if (by_cell()) {
      return each_run([&](int64_t k, int64_t low, int64_t high, Numbers& numbers) {
        for (int64_t c = low; c < high; ++c) {
          Set all;
          for (int64_t i = plan.begin(k); i < plan.end(k); ++i) {
            const Set part = moments(plan.chunks[i], c);
            all.add(part.n, part.mean, part.m2);
          }
          call.batch_mean[k * plan.c + c] = all.mean;
          call.batch_m2[k * plan.c + c] = all.m2;
        }
        finish(call, k, low, high);
        if (out != nullptr) map_run<false>(k, low, high, numbers);
      });
    }
    const auto partial = each_chunk([&](const Chunk& chunk, int64_t c, double& mean, double& m2) {
      const Set part = moments(chunk, c);
      mean = part.mean;
      m2 = part.m2;
    });
    merge_moments(call, partial.get());
    if (out != nullptr) map_all<false>();
  }

  void backward() const {
    if (call.sum_g == nullptr) return map_all<true>();
    if (by_cell()) {
      return each_run([&](int64_t k, int64_t low, int64_t high, Numbers& numbers) {
        for (int64_t r = plan.k > 1 ? k : 0; r < (plan.k > 1 ? k + 1 : plan.r); ++r) {
          prepare<false>(r, low, high, numbers);
          for (int64_t c = low; c < high; ++c) {
            double g = 0, g_xhat = 0;
            for (int64_t i = plan.first_chunk[r]; i < plan.first_chunk[r + 1]; ++i) {
              double part, part_xhat;
              gradient_sums(plan.chunks[i], c, numbers.of(c - low), part, part_xhat);
              g += part;
              g_xhat += part_xhat;
            }
            call.sum_g[r * plan.c + c] = g;
            call.sum_g_xhat[r * plan.c + c] = g_xhat;
          }
        }
        finish_gradients(call, k, low, high);
        if (out != nullptr) map_run<true>(k, low, high, numbers);
      });
    }
    const auto partial = each_chunk([&](const Chunk& chunk, int64_t c, double& g, double& g_xhat) {
      Numbers numbers(1);
      prepare<false>(chunk.group, c, c + 1, numbers);
      gradient_sums(chunk, c, numbers.of(0), g, g_xhat);
    });
    merge_gradients(call, partial.get());
    if (out != nullptr) map_all<true>();
  }
};

}  // namespace

void forward_channels_first(const Call& call) {
  with_type(call.type, [&](auto like) {
    Cells<std::remove_const_t<std::remove_pointer_t<decltype(like)>>>{call}.forward();
  });
}

void backward_channels_first(const Call& call) {
  with_type(call.type, [&](auto like) {
    Cells<std::remove_const_t<std::remove_pointer_t<decltype(like)>>>{call}.backward();
  });
}

}  // namespace normscope
