// The passes over values, for any layout: sums of chunks, what follows from them, and the map.
//
// Memory is read in its order. The map begins where the sums ended, in what the cache still holds.
#pragma once

#include <ATen/Parallel.h>

#include <memory>
#include <vector>

#include "loops.h"
#include "statistics.h"

namespace normscope {

constexpr double MANY = 512;  // values of a channel, for which it pays to look at some first
constexpr int64_t CACHED = 32768;  // values that the nearest caches hold beside their gradients

// Channels low to high.
struct Block {
  int64_t low, high;
  int64_t size() const { return high - low; }
};

// Layout: PER_VALUE, whether each value of a row has a coefficient of its own; inner, values from
// one channel to the next; most, channels of a block; rows, width, spread and fold, see there.
template <class T, class Layout>
struct Passes {
  using W = Wide<T>;

  // Numbers of a block: sums and coefficients, one for each column of the layout.
  struct Tables {
    std::unique_ptr<double[]> sums;
    std::unique_ptr<W[]> numbers;
    double *s, *q;
    W *m, *a, *b, *gb, *gc;
    int64_t group = -1, low = -1;  // whose coefficients they are
    explicit Tables(int64_t width) : sums(new double[2 * width]), numbers(new W[5 * width]) {
      s = sums.get(), q = s + width;
      m = numbers.get(), a = m + width, b = a + width, gb = b + width, gc = gb + width;
    }
    Coefficients<W> from(int64_t i) const { return {m + i, a + i, b + i, gb + i, gc + i}; }
  };

  const Call& call;
  const Plan& plan = call.plan;
  const Layout layout{plan};
  const Loops<T>& loops = loops_for<Layout::PER_VALUE, T>(call.act, call.residual != nullptr);
  const Data<T> data{static_cast<const T*>(call.x),        static_cast<const T*>(call.dy),
                     static_cast<const T*>(call.residual), static_cast<T*>(call.out),
                     static_cast<T*>(call.dresidual)};

  // Blocks do not change a bit: chunks alone decide what is summed together. They are as large as
  // leaves each thread one, since rows that are cut are read more slowly.
  int64_t channels_of_block(int64_t chunks) const {
    const int64_t threads = plan.size() > GRAIN ? at::get_num_threads() : 1;
    const int64_t shared = std::max<int64_t>(1, chunks), blocks = (threads + shared - 1) / shared;
    const int64_t channels = ((plan.c + blocks - 1) / blocks + 15) / 16 * 16;
    return std::min({plan.c, channels, layout.most});
  }

  // f(number, block, tables) of so many parts and their blocks, backwards where asked for.
  template <class F>
  void each(int64_t parts, bool backwards, F f) const {
    const int64_t step = channels_of_block(parts);
    const int64_t blocks = (plan.c + step - 1) / step, items = parts * blocks;
    parallel(items, plan.size() / std::max<int64_t>(1, items), [&](int64_t begin, int64_t end) {
      Tables tables(layout.width(step));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t item = backwards ? end - 1 - (i - begin) : i;
        const int64_t low = item % blocks * step;
        f(item / blocks, Block{low, std::min(plan.c, low + step)}, tables);
      }
    });
  }

  // Mean and m2 of a chunk in each channel of a block. All values are centred by the mean of its
  // first ones: they are among those that are summed, which bounds what cancels by count * eps, and
  // near the mean squares are small. Values far from 0 are multiples of a coarse step, and squares
  // of whole numbers are 0, 1 or 4 modulo 8: where float32 rounds their sums, it rounds them down.
  void moments(const Chunk& chunk, const Block& b, Tables& by, double* mean, double* m2) const {
    const int64_t width = layout.width(b.size());
    const double n = chunk.values;
    std::fill_n(mean, b.size(), 0.0);
    std::fill_n(m2, b.size(), 0.0);
    if (n == 0) return;
    // moments that are asked for alone are merged over batches and ranks
    for (bool exact = call.out == nullptr;; exact = true) {
      std::fill_n(by.s, width, 0.0);
      std::fill_n(by.q, width, 0.0);
      bool begun = false;
      layout.rows(chunk, b, plan.mask, [&](const int64_t* starts, int rows, int64_t n, int64_t at) {
        if (!begun) {
          const int64_t most = Layout::PER_VALUE ? rows : n;
          const int64_t first = chunk.values < MANY ? 1 : std::min<int64_t>(ROWS, most);
          for (int64_t c = 0; c < b.size(); ++c) {
            double value = 0;
            for (int64_t i = 0; i < first; ++i) {
              const int64_t at = Layout::PER_VALUE ? starts[i] : starts[0] + i;
              value += number(data.x + at + c * layout.inner);
            }
            by.m[c] = W(std::isfinite(value) ? value / first : 0.0);
          }
          layout.spread(b, by.m);
          begun = true;
        }
        (exact ? loops.exact_sums : loops.sums)(data, starts, rows, n, by.from(at), by.s + at,
                                                by.q + at);
      });
      layout.fold(b, by.s);
      layout.fold(b, by.q);
      const double share = 1 / n;
      bool finite = true;
      for (int64_t c = 0; c < b.size(); ++c) {
        const double step = by.s[c] * share;
        mean[c] = double(by.m[layout.first_column(c)]) + step;
        m2[c] = by.q[c] - by.s[c] * step;
        finite &= std::isfinite(m2[c]);
      }
      if (finite || exact) return;  // else squares were too large for float32
    }
  }

  template <bool Backward>
  void prepare(int64_t group, const Block& b, Tables& by) const {
    if (by.group == group && by.low == b.low) return;
    by.group = group, by.low = b.low;
    coefficients(call, group, b.low, b.high, by.m, by.a, by.b, Backward ? by.gb : nullptr, by.gc);
    for (W* table : {by.m, by.a, by.b}) layout.spread(b, table);
    if (!Backward) return;
    for (W* table : {by.gb, by.gc}) layout.spread(b, table);
  }

  // Sums of g and of g xhat of a chunk in each channel of a block.
  void gradient_sums(const Chunk& chunk, const Block& b, Tables& by, double* g,
                     double* g_xhat) const {
    const int64_t width = layout.width(b.size());
    std::fill_n(by.s, width, 0.0);
    std::fill_n(by.q, width, 0.0);
    layout.rows(chunk, b, plan.mask, [&](const int64_t* starts, int rows, int64_t n, int64_t at) {
      loops.gradient_sums(data, starts, rows, n, by.from(at), by.s + at, by.q + at);
    });
    layout.fold(b, by.s);
    layout.fold(b, by.q);
    for (int64_t c = 0; c < b.size(); ++c) {
      g[c] = by.s[c];
      g_xhat[c] = about_mean(call, chunk.group, b.low + c, by.s[c], by.q[c]);
    }
  }

  // The map of a chunk in each channel of a block.
  template <bool Backward>
  void map(const Chunk& chunk, const Block& b, Tables& by) const {
    prepare<Backward>(chunk.group, b, by);
    if (plan.mask != nullptr) {  // zeros where values do not count
      layout.rows(chunk, b, nullptr, [&](const int64_t* starts, int rows, int64_t n, int64_t) {
        for (int r = 0; r < rows; ++r) {
          std::fill_n(data.out + starts[r], n, T{});
          if (data.dresidual != nullptr) std::fill_n(data.dresidual + starts[r], n, T{});
        }
      });
    }
    const Loop<T> loop = Backward ? loops.gradient_map : loops.map;
    layout.rows(chunk, b, plan.mask, [&](const int64_t* starts, int rows, int64_t n, int64_t at) {
      loop(data, starts, rows, n, by.from(at), nullptr, nullptr);
    });
  }

  template <bool Backward>
  void map() const {
    const bool summed = Backward || call.from_batch;
    std::vector<Chunk> units;
    if (!summed && !Layout::PER_VALUE) {  // nothing is cached yet: as memory goes
      for (const Chunk& chunk : plan.chunks) {
        for (int64_t u = chunk.first; u < chunk.end; ++u) units.push_back({chunk.group, u, u + 1, 0});
      }
    }
    const std::vector<Chunk>& chunks = units.empty() ? plan.chunks : units;
    each(chunks.size(), summed,
         [&](int64_t i, const Block& b, Tables& by) { map<Backward>(chunks[i], b, by); });
  }

  template <bool Backward>
  void sums() const {
    std::unique_ptr<double[]> partial(new double[2 * plan.chunks.size() * plan.c]);
    each(plan.chunks.size(), false, [&](int64_t i, const Block& b, Tables& by) {
      double* row = partial.get() + 2 * i * plan.c + b.low;
      if constexpr (Backward) {
        prepare<false>(plan.chunks[i].group, b, by);
        gradient_sums(plan.chunks[i], b, by, row, row + plan.c);
      } else {
        moments(plan.chunks[i], b, by, row, row + plan.c);
      }
    });
    Backward ? merge_gradients(call, partial.get()) : merge_moments(call, partial.get());
  }

  // Both of chunks that are groups, some at a time, while the nearest caches hold them: the same
  // bits. Of one at a time, streams would be too short for the processor to fetch ahead.
  template <bool Backward>
  void sums_and_map() const {
    const int64_t chunks = plan.chunks.size();
    const int64_t some = std::clamp<int64_t>(CACHED * chunks / plan.size(), 1, chunks);
    each((chunks + some - 1) / some, false, [&](int64_t i, const Block& b, Tables& by) {
      const int64_t first = i * some, end = std::min(chunks, first + some);
      for (int64_t j = first; j < end; ++j) sums<Backward>(plan.chunks[j], b, by);
      by.group = -1;
      for (int64_t j = first; j < end; ++j) map<Backward>(plan.chunks[j], b, by);
    });
  }

  // Of a chunk that is a group, with what follows from them.
  template <bool Backward>
  void sums(const Chunk& chunk, const Block& b, Tables& by) const {
    const int64_t row = chunk.group * plan.c + b.low;
    if constexpr (Backward) {
      by.group = -1;
      prepare<false>(chunk.group, b, by);
      gradient_sums(chunk, b, by, call.sum_g + row, call.sum_g_xhat + row);
      finish_gradients(call, chunk.group, b.low, b.high);
    } else {
      moments(chunk, b, by, call.batch_mean + row, call.batch_m2 + row);
      finish(call, chunk.group, b.low, b.high);
    }
  }
};

// A pass over values of any dtype.
template <class Layout, class F>
void with_passes(const Call& call, F f) {
  with_type(call.type, [&](auto like) { f(Passes<decltype(like), Layout>{call}); });
}

template <class Layout, bool Backward>
constexpr LayoutPasses::Way way_of{
    [](const Call& c) { with_passes<Layout>(c, [](auto p) { p.template sums<Backward>(); }); },
    [](const Call& c) { with_passes<Layout>(c, [](auto p) { p.template map<Backward>(); }); },
    [](const Call& c) {
      with_passes<Layout>(c, [](auto p) { p.template sums_and_map<Backward>(); });
    }};

template <class Layout>
constexpr LayoutPasses passes_of{way_of<Layout, false>, way_of<Layout, true>};

}  // namespace normscope
