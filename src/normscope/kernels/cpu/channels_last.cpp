// Loops over (N, S, C): the channels of a value lie side by side, as in NHWC and in (N, C).
//
// Every loop goes over rows and has a number for each of their columns. Short rows of
// channels_first are read in the same way, a block of channels as one row of C * S columns.
#include <memory>
#include <vector>

#include "statistics.h"
#include "values.h"

namespace normscope {
namespace {

constexpr int64_t SHORT = 256;           // values: rows of channels_first that are read in blocks
constexpr int64_t FEWEST_SAMPLES = 4;    // per group, for that; with fewer, merging costs more
constexpr int64_t BLOCK_COLUMNS = 1024;  // of such a block
constexpr int64_t LONG_ROW = 512;        // columns: rows of fewer are read several at a time
constexpr int64_t CACHED = 65536;        // values of a group and block that stay in the cache
constexpr int64_t WIDE_BLOCK = 256;      // channels: in rows of fewer, memory is read too jumpily
constexpr int ROWS = 64;                 // whose places are looked up at a time

template <class T>
struct Columns {
  using W = Wide<T>;

  // Channels that are read together, and rows that are read as one.
  struct Block {
    int64_t low, high, fold;
  };

  // Numbers for each column.
  struct Scratch {
    std::vector<double> sums;
    std::vector<W> coefficients;
    double *s, *q, *shift;
    W *m, *a, *b, *gb, *gc;
    explicit Scratch(int64_t width)
        : sums(3 * width), coefficients(5 * width) {
      s = sums.data(), q = s + width, shift = q + width;
      m = coefficients.data(), a = m + width, b = a + width, gb = b + width, gc = gb + width;
    }
    Coefficients<W> view() const { return {m, a, b, gb, gc}; }
  };

  const Call& call;
  const Plan& plan = call.plan;
  const Loops<T>& loop = loops<true, T>(call.act, call.residual != nullptr);
  const T* x = static_cast<const T*>(call.x);
  const T* dy = static_cast<const T*>(call.dy);
  const T* residual = static_cast<const T*>(call.residual);
  T* out = static_cast<T*>(call.out);
  T* dresidual = static_cast<T*>(call.dresidual);
  const bool blocks_of_first = !plan.channels_last;
  const int64_t inner = blocks_of_first ? plan.s : 1;  // columns of a channel side by side
  const int64_t rows_of_group = (blocks_of_first ? plan.n : plan.n * plan.s) / plan.r;
  const int64_t step = channels_of_block();
  const int64_t blocks = (plan.c + step - 1) / step;
  const bool by_block = blocks_of_first ? plan.k * blocks >= 2 * at::get_num_threads() ||
                                              plan.size() <= GRAIN
                                        : step * rows_of_group <= CACHED;

  int64_t channels_of_block() const {
    if (blocks_of_first) return std::clamp<int64_t>(BLOCK_COLUMNS / plan.s, 1, plan.c);
    const int64_t fitting = CACHED / std::max<int64_t>(1, rows_of_group) / 16 * 16;
    return fitting < WIDE_BLOCK ? plan.c : std::min({plan.c, fitting, BLOCK_COLUMNS});
  }
  Block block(int64_t i) const {
    const int64_t low = i * step, high = std::min(plan.c, low + step);
    const bool whole = plan.channels_last && step == plan.c && plan.mask == nullptr;
    const int64_t longest = std::max<int64_t>(1, plan.chunks.empty() ? 1 : plan.piece);
    return {low, high, whole ? std::clamp<int64_t>(LONG_ROW / plan.c, 1, longest) : 1};
  }
  int64_t width(const Block& b) const { return (b.high - b.low) * inner * b.fold; }

  // f(starts, count, width) of all rows of a chunk that count, some at a time.
  template <class F>
  void rows(const Chunk& chunk, const Block& b, F f) const {
    int64_t starts[ROWS];
    int count = 0;
    const int64_t channels = b.high - b.low;
    for (int64_t u = chunk.first; u < chunk.end; ++u) {
      const Plan::Unit unit = plan.unit(u);
      if (blocks_of_first) {
        starts[count++] = (unit.sample * plan.c + b.low) * plan.s;
        if (count == ROWS) f(starts, count, width(b)), count = 0;
        continue;
      }
      const int64_t first = unit.sample * plan.s + unit.first, end = first + unit.size;
      for (int64_t row = first; row < end; row += b.fold) {
        if (plan.mask != nullptr && !plan.mask[row]) continue;
        const int64_t start = row * plan.c + b.low;
        if (row + b.fold > end) {  // what remains of a sample is a shorter row
          f(&start, 1, (end - row) * channels);
          continue;
        }
        starts[count++] = start;
        if (count == ROWS) f(starts, count, width(b)), count = 0;
      }
    }
    if (count > 0) f(starts, count, width(b));
  }

  // f(four starts, 4), and what remains one by one. The four are a quarter of all rows apart, so
  // that the processor sees four long streams.
  template <class F>
  static void in_fours(const int64_t* starts, int count, F f) {
    const int quarter = count / 4;
    for (int j = 0; j < quarter; ++j) {
      const int64_t four[4] = {starts[j], starts[quarter + j], starts[2 * quarter + j],
                               starts[3 * quarter + j]};
      f(four, 4);
    }
    for (int j = 4 * quarter; j < count; ++j) f(starts + j, 1);
  }

  // Zeros where rows do not count.
  void clear(const Chunk& chunk, const Block& b, T* values) const {
    if (plan.mask == nullptr) return;
    for (int64_t u = chunk.first; u < chunk.end; ++u) {
      const Plan::Unit unit = plan.unit(u);
      for (int64_t i = 0; i < unit.size; ++i) {
        const int64_t row = unit.sample * plan.s + unit.first + i;
        if (!plan.mask[row]) std::fill_n(values + row * plan.c + b.low, b.high - b.low, T{});
      }
    }
  }

  // The sum over the columns of each channel, into the first (b.high - b.low) of them.
  void fold(const Block& b, double* columns) const {
    const int64_t channels = b.high - b.low;
    if (inner > 1) {
      for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < inner; ++i) sum += columns[c * inner + i];
        columns[c] = sum;
      }
    }
    for (int64_t f = 1; f < b.fold; ++f) {
      for (int64_t c = 0; c < channels; ++c) columns[c] += columns[f * channels + c];
    }
  }

  // One number of each channel to all its columns, in place.
  template <class V>
  void spread(const Block& b, V* columns) const {
    const int64_t channels = b.high - b.low;
    if (inner > 1) {
      for (int64_t c = channels - 1; c >= 0; --c) {
        const V value = columns[c];
        std::fill_n(columns + c * inner, inner, value);
      }
    }
    for (int64_t f = 1; f < b.fold; ++f) std::copy_n(columns, channels, columns + f * channels);
  }

  // Mean and m2 of a chunk in each channel of a block. All rows are centred by the first one: its
  // values are among those that are summed, which bounds what cancels by count * eps.
  void moments(const Chunk& chunk, const Block& b, Scratch& by, double* mean, double* m2) const {
    const int64_t channels = b.high - b.low, columns = width(b);
    for (double* table : {by.s, by.q}) std::fill_n(table, columns, 0.0);
    bool begun = false;
    rows(chunk, b, [&](const int64_t* starts, int count, int64_t n) {
      if (!begun) {
        for (int64_t c = 0; c < channels; ++c) {
          const double value = number(x + starts[0] + c * inner);
          by.shift[c] = std::isfinite(value) ? value : 0.0;
        }
        spread(b, by.shift);
        begun = true;
      }
      in_fours(starts, count, [&](const int64_t* at, int some) {
        const T* four[4];
        for (int i = 0; i < some; ++i) four[i] = x + at[i];
        (some == 4 ? column_sums<4, T> : column_sums<1, T>)(four, n, by.shift, by.s, by.q);
      });
    });
    const double n = chunk.values;
    if (!begun || n == 0) {
      std::fill_n(mean, channels, 0.0);
      std::fill_n(m2, channels, 0.0);
      return;
    }
    fold(b, by.s);
    fold(b, by.q);
    for (int64_t c = 0; c < channels; ++c) {
      mean[c] = by.shift[c * inner] + by.s[c] / n;
      m2[c] = by.q[c] - by.s[c] * (by.s[c] / n);
    }
  }

  template <bool Backward>
  void prepare(int64_t r, const Block& b, Scratch& by) const {
    coefficients(call, r, b.low, b.high, by.m, by.a, by.b, Backward ? by.gb : nullptr, by.gc);
    for (W* columns : {by.m, by.a, by.b}) spread(b, columns);
    if constexpr (Backward) {
      spread(b, by.gb);
      spread(b, by.gc);
    }
  }

  // The coefficients of the chunk's group are prepared.
  void map(const Chunk& chunk, const Block& b, Scratch& by) const {
    const Coefficients<W> numbers = by.view();
    rows(chunk, b, [&](const int64_t* starts, int count, int64_t n) {
      for (int j = 0; j < count; ++j) {
        const int64_t at = starts[j];
        loop.map(x + at, residual ? residual + at : nullptr, out + at, n, numbers);
      }
    });
    clear(chunk, b, out);
  }

  // Sums of g and of g xhat of a chunk in each channel of a block.
  void gradient_sums(const Chunk& chunk, const Block& b, Scratch& by, double* g,
                     double* g_xhat) const {
    const Coefficients<W> numbers = by.view();
    const int64_t channels = b.high - b.low, columns = width(b);
    for (double* table : {by.s, by.q}) std::fill_n(table, columns, 0.0);
    rows(chunk, b, [&](const int64_t* starts, int count, int64_t n) {
      in_fours(starts, count, [&](const int64_t* at, int some) {
        const T *in[4], *from[4], *added[4];
        for (int i = 0; i < some; ++i) {
          in[i] = x + at[i], from[i] = dy + at[i];
          added[i] = residual ? residual + at[i] : nullptr;
        }
        loop.gradient_sums(in, from, added, some, n, numbers, by.s, by.q);
      });
    });
    fold(b, by.s);
    fold(b, by.q);
    for (int64_t c = 0; c < channels; ++c) {
      g[c] = by.s[c];
      g_xhat[c] = about_mean(call, chunk.group, b.low + c, by.s[c], by.q[c]);
    }
  }

  void gradient_map(const Chunk& chunk, const Block& b, Scratch& by) const {
    const Coefficients<W> numbers = by.view();
    rows(chunk, b, [&](const int64_t* starts, int count, int64_t n) {
      for (int j = 0; j < count; ++j) {
        const int64_t at = starts[j];
        loop.gradient_map(x + at, dy + at, residual ? residual + at : nullptr, out + at,
                          residual ? dresidual + at : nullptr, n, numbers);
      }
    });
    clear(chunk, b, out);
    if (residual) clear(chunk, b, dresidual);
  }

  template <bool Backward>
  void map_chunk(const Chunk& chunk, const Block& b, Scratch& by) const {
    if constexpr (Backward) {
      gradient_map(chunk, b, by);
    } else {
      map(chunk, b, by);
    }
  }

  // f(chunk number, block, scratch) of all chunks and blocks.
  template <class F>
  void each_chunk(F f) const {
    const int64_t items = plan.chunks.size() * blocks;
    parallel(items, plan.size() / std::max<int64_t>(1, items), [&](int64_t low, int64_t high) {
      Scratch scratch(width(block(0)));
      for (int64_t i = low; i < high; ++i) f(i / blocks, block(i % blocks), scratch);
    });
  }
  template <class F>
  void each_block(F f) const {
    const int64_t items = plan.k * blocks;
    parallel(items, 2 * plan.size() / items, [&](int64_t low, int64_t high) {
      Scratch scratch(width(block(0)));
      for (int64_t i = low; i < high; ++i) f(i / blocks, block(i % blocks), scratch);
    });
  }

  template <bool Backward>
  void map_all() const {
    each_chunk([&](int64_t i, const Block& b, Scratch& by) {
      prepare<Backward>(plan.chunks[i].group, b, by);
      map_chunk<Backward>(plan.chunks[i], b, by);
    });
  }

  template <bool Backward>
  void map_group(int64_t k, const Block& b, Scratch& by) const {
    int64_t prepared = -1;
    for (int64_t i = plan.begin(k); i < plan.end(k); ++i) {
      const Chunk& chunk = plan.chunks[i];
      if (chunk.group != prepared) prepare<Backward>(prepared = chunk.group, b, by);
      map_chunk<Backward>(chunk, b, by);
    }
  }

  void forward() const {
    if (call.batch_m2 == nullptr) return map_all<false>();
    if (by_block) {
      return each_block([&](int64_t k, const Block& b, Scratch& by) {
        const int64_t channels = b.high - b.low;
        std::vector<double> part(2 * channels);
        std::vector<Set> all(channels);
        for (int64_t i = plan.begin(k); i < plan.end(k); ++i) {
          double *mean = part.data(), *m2 = mean + channels;
          moments(plan.chunks[i], b, by, mean, m2);
          for (int64_t c = 0; c < channels; ++c) all[c].add(plan.chunks[i].values, mean[c], m2[c]);
        }
        for (int64_t c = 0; c < channels; ++c) {
          call.batch_mean[k * plan.c + b.low + c] = all[c].mean;
          call.batch_m2[k * plan.c + b.low + c] = all[c].m2;
        }
        finish(call, k, b.low, b.high);
        if (out != nullptr) map_group<false>(k, b, by);
      });
    }
    std::unique_ptr<double[]> partial(new double[2 * plan.chunks.size() * plan.c]);
    each_chunk([&](int64_t i, const Block& b, Scratch& by) {
      double* row = partial.get() + 2 * i * plan.c + b.low;
      moments(plan.chunks[i], b, by, row, row + plan.c);
    });
    merge_moments(call, partial.get());
    if (out != nullptr) map_all<false>();
  }

  void backward() const {
    if (call.sum_g == nullptr) return map_all<true>();
    if (by_block) {
      return each_block([&](int64_t k, const Block& b, Scratch& by) {
        const int64_t channels = b.high - b.low;
        std::vector<double> part(2 * channels);
        for (int64_t r = plan.k > 1 ? k : 0; r < (plan.k > 1 ? k + 1 : plan.r); ++r) {
          double* g = call.sum_g + r * plan.c + b.low;
          double* g_xhat = call.sum_g_xhat + r * plan.c + b.low;
          std::fill_n(g, channels, 0.0);
          std::fill_n(g_xhat, channels, 0.0);
          prepare<false>(r, b, by);
          for (int64_t i = plan.first_chunk[r]; i < plan.first_chunk[r + 1]; ++i) {
            gradient_sums(plan.chunks[i], b, by, part.data(), part.data() + channels);
            for (int64_t c = 0; c < channels; ++c) g[c] += part[c];
            for (int64_t c = 0; c < channels; ++c) g_xhat[c] += part[channels + c];
          }
        }
        finish_gradients(call, k, b.low, b.high);
        if (out != nullptr) map_group<true>(k, b, by);
      });
    }
    std::unique_ptr<double[]> partial(new double[2 * plan.chunks.size() * plan.c]);
    each_chunk([&](int64_t i, const Block& b, Scratch& by) {
      double* row = partial.get() + 2 * i * plan.c + b.low;
      prepare<false>(plan.chunks[i].group, b, by);
      gradient_sums(plan.chunks[i], b, by, row, row + plan.c);
    });
    merge_gradients(call, partial.get());
    if (out != nullptr) map_all<true>();
  }
};

}  // namespace

bool reads_blocks(const Plan& plan) {
  return !plan.channels_last && plan.mask == nullptr && plan.s < SHORT && plan.pieces == 1 &&
         plan.n / plan.r >= FEWEST_SAMPLES;
}

void forward_channels_last(const Call& call) {
  with_type(call.type, [&](auto like) {
    Columns<std::remove_const_t<std::remove_pointer_t<decltype(like)>>>{call}.forward();
  });
}

void backward_channels_last(const Call& call) {
  with_type(call.type, [&](auto like) {
    Columns<std::remove_const_t<std::remove_pointer_t<decltype(like)>>>{call}.backward();
  });
}

}  // namespace normscope
