// The four verbs of the reference as operators without a gradient, for layers whose statistics
// come from several ranks or from elsewhere.
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

Tensor normalize(const Problem&, Prepared& made) {
  const Tensor y = like(made.x);
  made.call.out = y.mutable_data_ptr();
  forward(made.call);
  return y;
}

void take_gradient(const Tensor& dy, const Problem& p, Prepared& made) {
  TORCH_CHECK(is_like(dy, p.x), UNFIT);
  made.dy = dy.contiguous(made.x.format);
  made.call.dy = made.dy.const_data_ptr();
}

std::tuple<Tensor, Tensor> backward_reduce(const Problem& p, Prepared& made, const Tensor& dy) {
  take_gradient(dy, p, made);
  Call& call = made.call;
  const Tensor sums = table({2, call.plan.r, call.plan.c});
  call.sum_g = sums.mutable_data_ptr<double>();
  call.sum_g_xhat = call.sum_g + call.plan.r * call.plan.c;
  backward(call);
  return {sums.select(0, 0), sums.select(0, 1)};
}

// Statistics of a problem, (1 or K, C) float64, without gaps.
Tensor given(const Tensor& t, const Problem& p) {
  TORCH_CHECK(readable(t) && t.scalar_type() == at::kDouble && t.dim() == 2 &&
              t.size(0) == p.num_groups && t.size(1) == p.x.size(1), UNFIT);
  return t.contiguous();
}

std::tuple<Tensor, std::optional<Tensor>> backward_input(
    const Problem& p, Prepared& made, const Tensor& dy, const std::optional<Tensor>& mean_g,
    const std::optional<Tensor>& mean_g_xhat) {
  take_gradient(dy, p, made);
  Call& call = made.call;
  Tensor means, means_xhat;
  if (mean_g && mean_g_xhat) {
    means = given(*mean_g, p);
    means_xhat = given(*mean_g_xhat, p);
    call.mean_g = means.const_data_ptr<double>();
    call.mean_g_xhat = means_xhat.const_data_ptr<double>();
  }
  const Tensor dx = like(made.x);
  call.out = dx.mutable_data_ptr();
  std::optional<Tensor> dresidual;
  if (p.residual.defined()) {
    dresidual = like(made.x);
    call.dresidual = dresidual->mutable_data_ptr();
  }
  backward(call);
  return {dx, dresidual};
}

// An operator: a function of a problem, of the statistics that it is given, and of more.
template <auto function, class... More>
auto verb(const Tensor& x, const std::optional<Tensor>& groups, int64_t num_groups,
          const std::optional<Tensor>& mask, const Tensor& mean, const Tensor& rstd,
          const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
          const std::optional<Tensor>& residual, int64_t act, const More&... more) {
  const Problem p{x, or_undefined(groups), num_groups, or_undefined(mask), or_undefined(weight),
                  or_undefined(bias), or_undefined(residual), act};
  TORCH_CHECK(fits(p), UNFIT);
  Prepared made;
  prepare(p, num_groups, 0, made);
  const Tensor means = given(mean, p), deviations = given(rstd, p);
  made.call.mean = const_cast<double*>(means.const_data_ptr<double>());
  made.call.rstd = const_cast<double*>(deviations.const_data_ptr<double>());
  return function(p, made, more...);
}

#define VERB_SCHEMA                                                                              \
  "Tensor x, Tensor? groups, int num_groups, Tensor? mask, Tensor mean, Tensor rstd, "           \
  "Tensor? weight, Tensor? bias, Tensor? residual, int act"

TORCH_LIBRARY_FRAGMENT(normscope, m) {
  m.def("moments(Tensor x, Tensor? groups, int num_groups, Tensor? mask) "
        "-> (Tensor, Tensor, Tensor)", moments);
  m.def("normalize(" VERB_SCHEMA ") -> Tensor", verb<normalize>);
  m.def("backward_reduce(" VERB_SCHEMA ", Tensor dy) -> (Tensor, Tensor)",
        verb<backward_reduce, Tensor>);
  m.def("backward_input(" VERB_SCHEMA ", Tensor dy, Tensor? mean_g, Tensor? mean_g_xhat) "
        "-> (Tensor, Tensor?)",
        verb<backward_input, Tensor, std::optional<Tensor>, std::optional<Tensor>>);
}

}  // namespace
}  // namespace normscope
