// A problem in torch's tensors, whether the loops may read it, and its call.
#pragma once

#include <optional>
#include <vector>

#include "tensors.h"

namespace normscope {

// The records Problem and Epilogue of Python.
struct Problem {
  Tensor x, groups;
  int64_t num_groups;
  Tensor mask, weight, bias, residual;
  int64_t act;
};

// A problem with all that its call points to.
struct Prepared {
  Dense x;
  Tensor residual, dy, groups, mask;
  std::vector<double> weight, bias, running_mean, running_var, means;
  Call call;
};

inline Tensor or_undefined(const std::optional<Tensor>& t) { return t.value_or(Tensor()); }
inline int64_t rows_of(const Tensor& table) {
  return table.defined() && table.dim() == 2 ? table.size(0) : 1;
}

// Whether a table is (C,), (1, C) or (rows, C) of floating point numbers.
bool is_table(const Tensor& table, int64_t channels, int64_t rows);
// Whether a tensor can be read beside x.
bool is_like(const Tensor& t, const Tensor& x);
// Whether the loops may read all of a problem; dtypes of tables are not asked for.
bool fits(const Problem& p);
// From a problem that fits. least: values that a group is filled up to.
void prepare(const Problem& p, int64_t num_groups, double least, Prepared& made);

void forward(const Call& call);
void backward(const Call& call);

// New values of the same shape, dtype and format.
Tensor like(const Dense& values);
// A new float64 table.
Tensor table(std::initializer_list<int64_t> sizes);

}  // namespace normscope
