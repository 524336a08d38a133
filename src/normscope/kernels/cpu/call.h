// A call of the operator as plain addresses and sizes. `layer.cpp` makes it from tensors that
// it has checked; the loops trust it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace normscope {

enum class Act { none, relu, leaky_relu, silu };
enum class Type { float32, float64, bfloat16, float16 };

// Samples of one group that are summed together, counted in units.
struct Chunk {
  int64_t group, first, end;
  double values;  // per channel
};

// How the values lie and which belong together.
//
// A unit is a piece of a sample: of each channel's values (channels_first) or of its rows of
// channels (channels_last). Chunks do not depend on the number of threads, so no result does.
struct Plan {
  bool channels_last;
  int64_t n, c, s;         // samples, channels, values per sample and channel
  int64_t k, r;            // groups with statistics of their own; groups that chunks tell apart
  int64_t pieces, piece;   // units of a sample, values per channel of a unit
  const bool* mask;        // (n, s), or null
  std::vector<int64_t> order;        // samples by group; empty: as they come
  std::vector<Chunk> chunks;
  std::vector<int64_t> first_chunk;  // (r + 1)
  std::vector<double> count_r, count, filled;  // values per channel: (r), (k), at least 1

  int64_t size() const { return n * c * s; }

  // The chunks that statistics group k is made of.
  int64_t begin(int64_t group) const { return k > 1 ? first_chunk[group] : 0; }
  int64_t end(int64_t group) const { return k > 1 ? first_chunk[group + 1] : first_chunk[r]; }

  struct Unit {
    int64_t sample, first, size;
  };
  Unit unit(int64_t u) const {
    Unit found{u, 0, s};
    if (pieces > 1) {
      found = {u / pieces, (u % pieces) * piece, piece};
      found.size = std::min(piece, s - found.first);
    }
    if (!order.empty()) found.sample = order[found.sample];
    return found;
  }
};

// Tables are (rows, C), float64. Null: not there.
struct Call {
  Plan plan;
  Type type;
  Act act;
  const void *x = nullptr, *dy = nullptr, *residual = nullptr;
  void *out = nullptr;        // y, or the gradient of x; null: only sums are asked for
  void *dresidual = nullptr;
  double eps = 0;
  bool from_batch = false;    // whether the statistics are functions of x
  int64_t affine_rows = 1;
  const double *weight = nullptr, *bias = nullptr;           // (1 or R, C)
  int64_t running_rows = 1;
  const double *running_mean = nullptr, *running_var = nullptr;  // fill up small groups
  double *mean = nullptr, *rstd = nullptr;                   // (K, C), what standardises
  double *batch_mean = nullptr, *batch_m2 = nullptr;         // (K, C)
  double *sum_g = nullptr, *sum_g_xhat = nullptr;            // (R, C)
  const double *mean_g = nullptr, *mean_g_xhat = nullptr;    // (K, C)
  double *own_mean_g = nullptr, *own_mean_g_xhat = nullptr;  // the same, to be written
};

// The passes over all values that one layout has.
struct LayoutPasses {
  struct Way {
    void (*sums)(const Call& call);  // moments and what standardises; of gradients and their means
    void (*map)(const Call& call);   // y; gradients of x and residual
    void (*sums_and_map)(const Call& call);  // where each chunk is a group
  } forward, backward;
};
extern const LayoutPasses CHANNELS_FIRST, CHANNELS_LAST;

}  // namespace normscope
