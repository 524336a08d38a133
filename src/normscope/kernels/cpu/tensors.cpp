#include "tensors.h"

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <numeric>
#if __has_include(<pthread.h>)
#include <pthread.h>
#endif

#include "statistics.h"
#include "values.h"

namespace normscope {
namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;

// A chunk has one shift and is summed in float32 at first, so what cancels stays below its size.
constexpr int64_t LONGEST_ROW = 16384;  // values: longer rows of channels_first are cut
constexpr int64_t CHUNK = 4096;         // values per channel of shorter ones
constexpr int64_t CHUNKS = 16;          // of channels_last, for threads to share; but no larger
constexpr int64_t LARGEST = 262144;     // than so many values of all channels,
constexpr int64_t FEWEST_ROWS = 128;    // nor smaller: merging would cost as much as summing

const DispatchKeySet PLAIN({DispatchKey::CPU, DispatchKey::ADInplaceOrView,
                            DispatchKey::AutogradCPU, DispatchKey::AutocastCPU});
const DispatchKeySet WATCHING({DispatchKey::Python, DispatchKey::PythonTLSSnapshot,
                               DispatchKey::FuncTorchDynamicLayerFrontMode,
                               DispatchKey::FuncTorchDynamicLayerBackMode,
                               DispatchKey::Functionalize, DispatchKey::Tracer});

bool forked = false;
#if __has_include(<pthread.h>)
const int watches_forks = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

bool is_forked_child() { return forked; }

bool readable(const Tensor& t) {
  if (!t.defined() || !t.is_cpu() || t.layout() != c10::kStrided) return false;
  if ((t.key_set() | PLAIN) != PLAIN) return false;  // subclasses, views by sign, transforms ...
  if (t.numel() == 0) return true;
  int64_t last = t.storage_offset();
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  const auto& storage = t.storage();
  return storage.data() != nullptr && size_t(last + 1) * t.element_size() <= storage.nbytes();
}

std::optional<Type> type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return Type::float32;
    case at::kDouble: return Type::float64;
    case at::kBFloat16: return Type::bfloat16;
    case at::kHalf: return Type::float16;
    default: return std::nullopt;
  }
}

bool is_watched() {
  return c10::impl::tls_local_dispatch_key_set().included_.has_any(WATCHING);
}

namespace {

at::MemoryFormat format_of(const Tensor& x) {
  using at::MemoryFormat;
  if (x.is_contiguous()) return MemoryFormat::Contiguous;
  if (x.is_contiguous(MemoryFormat::ChannelsLast)) return MemoryFormat::ChannelsLast;
  if (x.is_contiguous(MemoryFormat::ChannelsLast3d)) return MemoryFormat::ChannelsLast3d;
  return x.suggest_memory_format();
}

}  // namespace

Dense dense(const Tensor& x) {
  const auto format = format_of(x);
  const bool side_by_side = x.dim() == 2 || x.numel() == x.size(0) * x.size(1);
  return {x.contiguous(format), format, side_by_side || format != at::MemoryFormat::Contiguous};
}

Plan make_plan(const Tensor& x, bool channels_last, const Tensor& groups, int64_t k, int64_t r,
               const Tensor& mask, double least) {
  Plan plan{channels_last, x.size(0), x.size(1), 0, k, r};
  plan.s = x.numel() / (plan.n * plan.c);
  plan.mask = mask.defined() ? mask.const_data_ptr<bool>() : nullptr;
  const bool grouped = r > 1;
  if (channels_last && !grouped && plan.mask == nullptr) {  // all samples are one
    plan.s *= plan.n;
    plan.n = 1;
  }
  const int64_t share = x.numel() > GRAIN ? x.numel() / CHUNKS : x.numel();
  const int64_t rows = std::max(FEWEST_ROWS, std::min(LARGEST, share) / plan.c);
  const int64_t most = channels_last ? rows : LONGEST_ROW;
  const int64_t cuts = (plan.s + most - 1) / most;
  plan.piece = (plan.s + cuts - 1) / cuts;
  plan.pieces = (plan.s + plan.piece - 1) / plan.piece;
  const int64_t units = std::max<int64_t>(1, (channels_last ? rows : CHUNK) / plan.piece);

  std::vector<int64_t> starts(r + 1, 0);  // of each group among the sorted samples
  if (grouped) {
    const int64_t* ids = groups.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < plan.n; ++i) {
      TORCH_CHECK(ids[i] >= 0 && ids[i] < r, "groups changed during a call");
      ++starts[ids[i] + 1];
    }
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    plan.order.resize(plan.n);
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t i = 0; i < plan.n; ++i) plan.order[next[ids[i]]++] = i;
  } else {
    starts[1] = plan.n;
  }
  plan.count_r.assign(r, 0.0);
  for (int64_t g = 0; g < r; ++g) {
    plan.first_chunk.push_back(plan.chunks.size());
    const int64_t end = starts[g + 1] * plan.pieces;
    for (int64_t low = starts[g] * plan.pieces; low < end; low += units) {
      const int64_t high = std::min(low + units, end);
      int64_t values = 0;
      for (int64_t u = low; u < high; ++u) {
        const Plan::Unit unit = plan.unit(u);
        if (plan.mask == nullptr) {
          values += unit.size;
        } else {
          const bool* flags = plan.mask + unit.sample * plan.s + unit.first;
          values += std::count(flags, flags + unit.size, true);
        }
      }
      plan.chunks.push_back({g, low, high, double(values)});
      plan.count_r[g] += values;
    }
  }
  plan.first_chunk.push_back(plan.chunks.size());
  plan.count = plan.count_r;
  if (k == 1 && r > 1) {
    plan.count.assign(1, std::accumulate(plan.count_r.begin(), plan.count_r.end(), 0.0));
  }
  for (double count : plan.count) plan.filled.push_back(std::max({count, least, 1.0}));
  return plan;
}

std::vector<double> widened(const Tensor& table) {
  const Tensor dense = table.contiguous();
  const int64_t n = dense.numel();
  std::vector<double> values(n);
  with_type(*type_of(dense), [&](auto like) {
    using T = decltype(like);
    const T* from = static_cast<const T*>(dense.const_data_ptr());
    for (int64_t i = 0; i < n; ++i) values[i] = number(from + i);
  });
  return values;
}

void store(const double* values, const Tensor& table) {
  const int64_t n = table.numel();
  with_type(*type_of(table), [&](auto like) {
    using T = decltype(like);
    T* into = static_cast<T*>(table.mutable_data_ptr());
    for (int64_t i = 0; i < n; ++i) store(values[i], into + i);
  });
}

}  // namespace normscope
