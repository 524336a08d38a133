// (N, C, S): the values of a channel in a sample lie side by side, as in NCHW. A row is one of them.
#include "passes.h"

namespace normscope {
namespace {

struct ChannelsFirst {
  static constexpr bool PER_VALUE = false;
  const Plan& plan;
  const int64_t inner = plan.s, most = plan.c;

  // f(starts, rows, n, first channel in the block) over all rows of a chunk that count: of n values
  // each, of channels side by side. Where there is a mask, a row is a run of values that count.
  template <class F>
  void rows(const Chunk& chunk, const Block& b, const bool* mask, F f) const {
    for (int64_t u = chunk.first; u < chunk.end; ++u) {
      const Plan::Unit unit = plan.unit(u);
      const bool* counts = mask == nullptr ? nullptr : mask + unit.sample * plan.s + unit.first;
      for (int64_t begin = 0, end = unit.size; begin < unit.size; begin = end, end = unit.size) {
        if (counts != nullptr) {
          begin = std::find(counts + begin, counts + unit.size, true) - counts;
          end = std::find(counts + begin, counts + unit.size, false) - counts;
          if (begin == end) break;
        }
        for (int64_t c = b.low; c < b.high; c += ROWS) {
          const int count = int(std::min<int64_t>(ROWS, b.high - c));
          int64_t starts[ROWS];
          for (int i = 0; i < count; ++i) {
            starts[i] = (unit.sample * plan.c + c + i) * plan.s + unit.first + begin;
          }
          f(starts, count, end - begin, c - b.low);
        }
      }
    }
  }

  // Tables have one number for each channel.
  int64_t width(int64_t channels) const { return channels; }
  int64_t first_column(int64_t channel) const { return channel; }
  template <class V>
  void spread(const Block&, V*) const {}
  void fold(const Block&, double*) const {}
};

}  // namespace

const LayoutPasses CHANNELS_FIRST = passes_of<ChannelsFirst>;

}  // namespace normscope
