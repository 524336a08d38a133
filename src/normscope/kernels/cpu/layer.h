// A whole layer with its gradient, in torch's tensors.
#pragma once

#include <optional>

#include "problem.h"

namespace normscope {

struct Layer : Problem {
  Tensor running_mean, running_var, tracked;
  bool from_batch, update;
  std::optional<double> momentum;
  double eps;
  int64_t min_count;
};

struct Output {
  Tensor y;
  Tensor table;  // (2 or 4, K, C): mean and rstd that standardised, mean and m2 of the batch
  std::vector<double> count;  // (K,), of the batch
};

// Whether the call can be taken; then y, and where `recorded` what it was made with. Else nothing
// has changed.
bool run(Layer layer, Output& output, bool recorded);

}  // namespace normscope
