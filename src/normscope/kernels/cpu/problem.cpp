#include "problem.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

namespace normscope {

bool is_table(const Tensor& table, int64_t channels, int64_t rows) {
  if (!readable(table) || !type_of(table) || table.size(-1) != channels) return false;
  return table.dim() == 1 || (table.dim() == 2 && (table.size(0) == 1 || table.size(0) == rows));
}

bool is_like(const Tensor& t, const Tensor& x) {
  return readable(t) && t.scalar_type() == x.scalar_type() && t.sizes() == x.sizes();
}

bool fits(const Problem& p) {
  const Tensor& x = p.x;
  if (!readable(x) || !type_of(x) || x.dim() < 2 || x.numel() == 0) return false;
  if (p.act < 0 || p.act > 3 || p.num_groups < 1) return false;
  const int64_t n = x.size(0), c = x.size(1);
  const int64_t rows = std::max({p.num_groups, rows_of(p.weight), rows_of(p.bias)});
  if (p.num_groups != 1 && p.num_groups != rows) return false;
  for (const Tensor& table : {p.weight, p.bias}) {
    if (table.defined() && !(table.dim() >= 1 && is_table(table, c, rows))) return false;
  }
  if (p.residual.defined() && !is_like(p.residual, x)) return false;
  if (!p.groups.defined() && rows > 1) return false;
  if (p.groups.defined()) {
    if (!readable(p.groups) || p.groups.scalar_type() != at::kLong || p.groups.dim() != 1 ||
        p.groups.size(0) != n) {
      return false;
    }
    const Tensor ids = p.groups.contiguous();
    const int64_t* id = ids.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < n; ++i) {
      if (id[i] < 0 || id[i] >= rows) return false;
    }
  }
  if (!p.mask.defined()) return true;
  if (!readable(p.mask) || p.mask.scalar_type() != at::kBool || p.mask.dim() != x.dim()) return false;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (p.mask.size(d) != (d == 1 ? 1 : x.size(d))) return false;
  }
  return true;
}

void prepare(const Problem& p, int64_t k, double least, Prepared& made) {
  made.x = dense(p.x);
  const bool last = made.x.channels_last;
  const int64_t affine_rows = std::max(rows_of(p.weight), rows_of(p.bias));
  if (p.groups.defined()) made.groups = p.groups.contiguous();
  if (p.mask.defined()) made.mask = p.mask.contiguous();
  Call& call = made.call;
  call.plan = make_plan(made.x.x, last, made.groups, k, std::max(k, affine_rows), made.mask, least);
  call.type = *type_of(p.x);
  call.act = Act(p.act);
  call.x = made.x.x.const_data_ptr();
  if (p.residual.defined()) {
    made.residual = p.residual.contiguous(made.x.format);
    call.residual = made.residual.const_data_ptr();
  }
  call.affine_rows = affine_rows;
  const int64_t c = call.plan.c;
  const auto rows = [&](const Tensor& table, std::vector<double>& into) -> const double* {
    if (!table.defined()) return nullptr;
    into = widened(table);
    if (int64_t(into.size()) < affine_rows * c) {  // one row serves all
      into.resize(affine_rows * c);
      for (int64_t i = c; i < affine_rows * c; ++i) into[i] = into[i - c];
    }
    return into.data();
  };
  call.weight = rows(p.weight, made.weight);
  call.bias = rows(p.bias, made.bias);
}

namespace {

constexpr int64_t SHORT = 128;         // values: shorter rows of channels_first are summed,
constexpr int64_t SHORT_MAP = 32;      // shorter ones mapped as if they were channels_last;
constexpr int64_t FEWEST_SAMPLES = 4;  // with fewer of a group, their tables cost more

const LayoutPasses& passes(const Plan& plan, int64_t shortest) {
  const bool samples = plan.s < shortest && plan.pieces == 1 && plan.mask == nullptr &&
                       plan.n / plan.r >= FEWEST_SAMPLES;
  return plan.channels_last || samples ? CHANNELS_LAST : CHANNELS_FIRST;
}
const LayoutPasses& map_passes(const Call& call) {
  const bool narrow = call.type == Type::bfloat16 || call.type == Type::float16;
  return passes(call.plan, narrow ? 2 * SHORT_MAP : SHORT_MAP);
}

// whole: the map goes by these sums.
void compute(const Call& call, LayoutPasses::Way LayoutPasses::*way, bool whole, bool sums) {
  const LayoutPasses &of_sums = passes(call.plan, SHORT), &of_map = map_passes(call);
  const Plan& plan = call.plan;
  bool each_is_a_group = plan.k == plan.r;
  for (int64_t k = 0; k < plan.k; ++k) each_is_a_group &= plan.end(k) - plan.begin(k) == 1;
  if (whole && each_is_a_group && call.out != nullptr && &of_sums == &of_map) {
    return (of_map.*way).sums_and_map(call);
  }
  if (sums) (of_sums.*way).sums(call);
  if (call.out != nullptr) (of_map.*way).map(call);
}

}  // namespace

void forward(const Call& call) {
  compute(call, &LayoutPasses::forward, call.batch_m2 != nullptr && call.rstd != nullptr,
          call.batch_m2 != nullptr);
}

void backward(const Call& call) {
  compute(call, &LayoutPasses::backward, call.own_mean_g != nullptr, call.sum_g != nullptr);
}

Tensor like(const Dense& values) {
  return at::empty_like(values.x, values.x.options(), values.format);
}

Tensor table(std::initializer_list<int64_t> sizes) {
  return at::empty(sizes, at::TensorOptions(at::kDouble));
}

}  // namespace normscope
