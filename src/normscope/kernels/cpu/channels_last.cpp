// (N, S, C): channels lie side by side, as in NHWC and (N, C). A row is a point with all channels.
//
// Short rows of channels_first are read so too: a row is then a sample with C * S columns.
#include "passes.h"

namespace normscope {
namespace {

constexpr int64_t MOST_COLUMNS = 4096;   // of a block of them
constexpr int64_t LONG_ROW = 512;        // columns: rows of fewer are read several at a time
constexpr int GATHERED = 512;            // rows whose places are looked up at a time

struct ChannelsLast {
  static constexpr bool PER_VALUE = true;
  const Plan& plan;
  const bool samples = !plan.channels_last;  // rows are whole samples
  const int64_t inner = samples ? plan.s : 1;
  const int64_t most = samples ? std::max<int64_t>(1, MOST_COLUMNS / plan.s) : plan.c;

  // Points that are read as one row: only where that is all of their channels, and no more than
  // leaves some rows, since tables are made for each point.
  int64_t points(int64_t channels) const {
    if (samples || plan.mask != nullptr || channels < plan.c) return 1;
    return std::clamp<int64_t>(LONG_ROW / plan.c, 1, std::max<int64_t>(1, plan.piece / ROWS));
  }

  // Tables have one number for each column.
  int64_t width(int64_t channels) const { return channels * inner * points(channels); }
  int64_t first_column(int64_t channel) const { return channel * inner; }

  // f(starts, rows, n, 0) over all rows of a chunk that count, of n columns each. Rows that are
  // taken together lie far apart, so that the processor sees some long streams.
  template <class F>
  void rows(const Chunk& chunk, const Block& b, const bool* mask, F f) const {
    int64_t starts[GATHERED];
    int count = 0;
    const int64_t together = points(b.size()), columns = width(b.size());
    const auto pass_on = [&] {
      const int length = count / ROWS;
      int64_t some[ROWS];
      for (int i = 0; i < length; ++i) {
        for (int j = 0; j < ROWS; ++j) some[j] = starts[j * length + i];
        f(some, ROWS, columns, int64_t(0));
      }
      if (length * ROWS < count) f(starts + length * ROWS, count - length * ROWS, columns, int64_t(0));
      count = 0;
    };
    for (int64_t u = chunk.first; u < chunk.end; ++u) {
      const Plan::Unit unit = plan.unit(u);
      const int64_t first = samples ? unit.sample : unit.sample * plan.s + unit.first;
      const int64_t end = first + (samples ? 1 : unit.size);
      for (int64_t row = first; row < end; row += together) {
        if (mask != nullptr && !mask[row]) continue;
        const int64_t start = (row * plan.c + b.low) * inner;
        if (row + together > end) {  // what remains of a unit is a shorter row
          f(&start, 1, (end - row) * plan.c, int64_t(0));
          continue;
        }
        starts[count++] = start;
        if (count == GATHERED) pass_on();
      }
    }
    if (count > 0) pass_on();
  }

  // The sum over the columns of each channel, into the first of all.
  void fold(const Block& b, double* columns) const {
    const int64_t channels = b.size();
    if (inner > 1) {
      for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < inner; ++i) sum += columns[c * inner + i];
        columns[c] = sum;
      }
    }
    for (int64_t i = channels; i < points(channels) * channels; i += channels) {
      for (int64_t c = 0; c < channels; ++c) columns[c] += columns[i + c];
    }
  }

  // One number of each channel to all its columns, in place.
  template <class V>
  void spread(const Block& b, V* columns) const {
    const int64_t channels = b.size();
    if (inner > 1) {
      for (int64_t c = channels - 1; c >= 0; --c) {
        const V value = columns[c];
        std::fill_n(columns + c * inner, inner, value);
      }
    }
    for (int64_t i = 1; i < points(channels); ++i) {
      std::copy_n(columns, channels, columns + i * channels);
    }
  }
};

}  // namespace

const LayoutPasses CHANNELS_LAST = passes_of<ChannelsLast>;

}  // namespace normscope
