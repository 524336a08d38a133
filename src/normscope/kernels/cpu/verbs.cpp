// The four verbs of the reference as operators without a gradient, for layers whose statistics
// come from several ranks or from elsewhere.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "problem.h"

namespace normscope {
namespace {

constexpr const char* UNFIT = "the CPU kernels cannot take these tensors; use impl='reference'";

std::tuple<Tensor, Tensor, Tensor> moments(const Tensor& x, const std::optional<Tensor>& groups,
                                           int64_t num_groups, const std::optional<Tensor>& mask) {
  const Problem p{x, or_undefined(groups), num_groups, or_undefined(mask)};
  Prepared made;
  TORCH_CHECK(fits(p), UNFIT);
  prepare(p, num_groups, 0, made);
  Call& call = made.call;
  const Tensor found = table({2, call.plan.k, call.plan.c}), count = table({call.plan.k});
  call.batch_mean = found.mutable_data_ptr<double>();
  call.batch_m2 = call.batch_mean + call.plan.k * call.plan.c;
  forward(call);
  std::copy(call.plan.count.begin(), call.plan.count.end(), count.mutable_data_ptr<double>());
  return {count, found.select(0, 0), found.select(0, 1)};
}

#define VERB_ARGUMENTS                                                                           \
  const Tensor &x, const std::optional<Tensor>&groups, int64_t num_groups,                       \
      const std::optional<Tensor>&mask, const Tensor &mean, const Tensor &rstd,                  \
      const std::optional<Tensor>&weight, const std::optional<Tensor>&bias,                      \
      const std::optional<Tensor>&residual, int64_t act

// A call with given statistics, (1 or K, C) float64.
struct Mapped {
  Problem problem;
  Tensor mean, rstd;
  Prepared made;

  Mapped(VERB_ARGUMENTS)
      : problem{x, or_undefined(groups), num_groups, or_undefined(mask), or_undefined(weight),
                or_undefined(bias), or_undefined(residual), act} {
    const auto given = [&](const Tensor& t) {
      TORCH_CHECK(readable(t) && t.scalar_type() == at::kDouble && t.dim() == 2 &&
                  t.size(0) == num_groups && t.size(1) == x.size(1), UNFIT);
      return t.contiguous();
    };
    TORCH_CHECK(fits(problem), UNFIT);
    prepare(problem, num_groups, 0, made);
    this->mean = given(mean);
    this->rstd = given(rstd);
    made.call.mean = const_cast<double*>(this->mean.const_data_ptr<double>());
    made.call.rstd = const_cast<double*>(this->rstd.const_data_ptr<double>());
  }

  void gradient(const Tensor& dy) {
    TORCH_CHECK(is_like(dy, problem.x), UNFIT);
    made.dy = ordered_as(dy, made.x.channels_last);
    made.call.dy = made.dy.const_data_ptr();
  }
};
#define MAPPED Mapped(x, groups, num_groups, mask, mean, rstd, weight, bias, residual, act)

Tensor normalize(VERB_ARGUMENTS) {
  auto work = MAPPED;
  const Tensor y = at::empty_like(work.made.x.x);
  work.made.call.out = y.mutable_data_ptr();
  forward(work.made.call);
  return y;
}

std::tuple<Tensor, Tensor> backward_reduce(const Tensor& dy, VERB_ARGUMENTS) {
  auto work = MAPPED;
  work.gradient(dy);
  Call& call = work.made.call;
  const Tensor sums = table({2, call.plan.r, call.plan.c});
  call.sum_g = sums.mutable_data_ptr<double>();
  call.sum_g_xhat = call.sum_g + call.plan.r * call.plan.c;
  backward(call);
  return {sums.select(0, 0), sums.select(0, 1)};
}

std::tuple<Tensor, std::optional<Tensor>> backward_input(
    const Tensor& dy, VERB_ARGUMENTS, const std::optional<Tensor>& mean_g,
    const std::optional<Tensor>& mean_g_xhat) {
  auto work = MAPPED;
  work.gradient(dy);
  Call& call = work.made.call;
  Tensor means, means_xhat;
  if (mean_g && mean_g_xhat) {
    const auto given = [&](const Tensor& t) {
      TORCH_CHECK(readable(t) && t.scalar_type() == at::kDouble && t.sizes() == mean.sizes(), UNFIT);
      return t.contiguous();
    };
    means = given(*mean_g);
    means_xhat = given(*mean_g_xhat);
    call.mean_g = means.const_data_ptr<double>();
    call.mean_g_xhat = means_xhat.const_data_ptr<double>();
  }
  const Tensor dx = at::empty_like(work.made.x.x);
  call.out = dx.mutable_data_ptr();
  std::optional<Tensor> dresidual;
  if (residual) {
    dresidual = at::empty_like(work.made.x.x);
    call.dresidual = dresidual->mutable_data_ptr();
  }
  backward(call);
  return {dx, dresidual};
}

#define VERB_SCHEMA                                                                              \
  "Tensor x, Tensor? groups, int num_groups, Tensor? mask, Tensor mean, Tensor rstd, "           \
  "Tensor? weight, Tensor? bias, Tensor? residual, int act"


TORCH_LIBRARY_FRAGMENT(normscope, m) {
  m.def("moments(Tensor x, Tensor? groups, int num_groups, Tensor? mask) "
        "-> (Tensor, Tensor, Tensor)", moments);
  m.def("normalize(" VERB_SCHEMA ") -> Tensor", normalize);
  m.def("backward_reduce(Tensor dy, " VERB_SCHEMA ") -> (Tensor, Tensor)", backward_reduce);
  m.def("backward_input(Tensor dy, " VERB_SCHEMA ", Tensor? mean_g, Tensor? mean_g_xhat) "
        "-> (Tensor, Tensor?)", backward_input);
}

}  // namespace
}  // namespace normscope
