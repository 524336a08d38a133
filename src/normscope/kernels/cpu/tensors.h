// From torch's tensors to calls: what can be taken, its layout, and its plan.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "call.h"

namespace normscope {

using at::Tensor;

// What a tensor is to be, so that loops may reach its memory: a plain tensor on the CPU, with all
// its values in its storage.
bool readable(const Tensor& t);
std::optional<Type> type_of(const Tensor& t);

// Whether a compiler, a transform of torch.func or a dispatch mode looks at every operation.
bool is_watched();

// Values of a problem without gaps in memory, in the format that torch's batch norm answers in.
struct Dense {
  Tensor x;
  at::MemoryFormat format;
  bool channels_last;
};
Dense dense(const Tensor& x);

// The plan of a call.
//
// groups: (N,) int64 contiguous, or undefined. mask: as many bools as samples times positions,
// contiguous, or undefined. least: values that a group is filled up to.
Plan make_plan(const Tensor& x, bool channels_last, const Tensor& groups, int64_t k, int64_t r,
               const Tensor& mask, double least);

// The values of a table as float64.
std::vector<double> widened(const Tensor& table);
// And back, into a contiguous table of any dtype.
void store(const double* values, const Tensor& table);

}  // namespace normscope
