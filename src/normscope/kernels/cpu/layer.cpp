// The operator `batch_norm`: a whole layer with its gradient.
//
// It takes a call only where every tensor is plain memory of the right shape and dtype; else it
// gives nothing back and has changed nothing: Python then says what is wrong, or makes it right, or
// computes with the reference.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>

#include "layer.h"
#include "statistics.h"

namespace normscope {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Whether a call can be taken, and is one that torch takes.
bool fits(const Layer& l) {
  if (is_watched() || !fits(static_cast<const Problem&>(l))) return false;
  const Tensor& x = l.x;
  const bool narrow = x.element_size() == 2, running = l.running_mean.defined();
  if (running != l.running_var.defined()) return false;
  if (!(l.from_batch ? l.eps > 0 : l.eps >= 0 && running)) return false;
  for (const Tensor& t : {l.weight, l.bias, l.running_mean, l.running_var}) {
    if (!t.defined() || t.scalar_type() == x.scalar_type()) continue;
    if (!narrow || t.scalar_type() != at::kFloat) return false;
  }
  if (running) {
    for (const Tensor& t : {l.running_mean, l.running_var}) {
      if (t.dim() < 1 || !is_table(t, x.size(1), l.num_groups) || !t.is_contiguous()) return false;
    }
    if (l.running_mean.dim() != l.running_var.dim() ||
        l.running_mean.scalar_type() != l.running_var.scalar_type()) {
      return false;
    }
  }
  if (l.update && l.momentum && *l.momentum != *l.momentum) return false;
  if (l.tracked.defined() &&
      !(readable(l.tracked) && l.tracked.scalar_type() == at::kLong && l.tracked.is_contiguous() &&
        (l.tracked.numel() == 1 || l.tracked.numel() == l.num_groups))) {
    return false;
  }
  return !l.from_batch || l.groups.defined() || x.numel() > x.size(1);  // one value has no variance
}

void written_to(const Tensor& t) {
  if (!t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}

// running = (1 - share) * running + share * batch, unbiased variance. One row of running
// statistics for several groups takes the groups pooled.
void update_running(const Layer& l, Prepared& made, const double* means, const double* m2s) {
  const Plan& plan = made.call.plan;
  const int64_t rows = rows_of(l.running_mean), c = plan.c;
  int64_t* tracked = l.tracked.defined() ? l.tracked.mutable_data_ptr<int64_t>() : nullptr;
  const int64_t counters = tracked ? l.tracked.numel() : 0;
  const auto share = [&](int64_t row) {
    if (l.momentum) return *l.momentum;
    if (!tracked) return 0.0;  // without a counter nothing moves, as in torch
    return 1.0 / std::max<double>(double(tracked[counters > 1 ? row : 0]) + 1, 1);
  };
  std::vector<double>&mean = made.running_mean, &var = made.running_var;
  const auto move = [&](int64_t row, int64_t i, double part, const Set& batch) {
    if (batch.n <= 1) return;  // no unbiased variance
    mean[row * c + i] = (1 - part) * mean[row * c + i] + part * batch.mean;
    var[row * c + i] = (1 - part) * var[row * c + i] + part * (batch.m2 / (batch.n - 1));
  };
  parallel(c, 4 * plan.k, [&](int64_t low, int64_t high) {
    if (rows > 1 || plan.k == 1) {
      for (int64_t k = 0; k < plan.k; ++k) {
        const double part = share(k), n = plan.count[k];
        for (int64_t i = low; i < high; ++i) move(k, i, part, {n, means[k * c + i], m2s[k * c + i]});
      }
      return;
    }
    const double part = share(0);
    for (int64_t i = low; i < high; ++i) {
      Set all;
      for (int64_t k = 0; k < plan.k; ++k) all.add(plan.count[k], means[k * c + i], m2s[k * c + i]);
      move(0, i, part, all);
    }
  }, TABLE_GRAIN);
  store(mean.data(), l.running_mean);
  store(var.data(), l.running_var);
  written_to(l.running_mean);
  written_to(l.running_var);
  if (tracked == nullptr) return;
  for (int64_t i = 0; i < counters; ++i) tracked[i] += counters == 1 || plan.count[i] > 1;
  written_to(l.tracked);
}

double least(const Layer& l) {
  return l.groups.defined() && l.running_mean.defined() ? double(l.min_count) : 0.0;
}

void forward_pass(const Layer& l, Output& output, bool recorded) {
  Prepared made;
  prepare(l, l.num_groups, least(l), made);
  Call& call = made.call;
  const int64_t k = call.plan.k, c = call.plan.c;
  output.y = like(made.x);
  call.out = output.y.mutable_data_ptr();
  if (recorded) {
    output.table = table({l.from_batch ? 4 : 2, k, c});
    call.mean = output.table.mutable_data_ptr<double>();
  } else {
    made.means.resize(4 * k * c);
    call.mean = made.means.data();
  }
  call.rstd = call.mean + k * c;
  call.eps = l.eps;
  if (l.running_mean.defined()) {
    made.running_mean = widened(l.running_mean);
    made.running_var = widened(l.running_var);
    call.running_rows = rows_of(l.running_mean);
    call.running_mean = made.running_mean.data();
    call.running_var = made.running_var.data();
  }
  if (l.from_batch) {
    call.from_batch = true;
    call.batch_mean = call.rstd + k * c;
    call.batch_m2 = call.batch_mean + k * c;
  } else {
    for (int64_t i = 0; i < k * c; ++i) call.mean[i] = call.running_mean[i];
    for (int64_t i = 0; i < k * c; ++i) {
      call.rstd[i] = inverse_deviation(call.running_var[i], l.eps);
    }
  }
  forward(call);
  if (l.update && l.running_mean.defined()) {
    update_running(l, made, call.batch_mean, call.batch_m2);
  }
  if (recorded && l.from_batch) output.count = std::move(call.plan.count);
}

// The gradient of a table as it was given, of one made with more rows or in float64.
Tensor gradient_of(const Tensor& given, const std::vector<double>& sums, int64_t rows, int64_t c) {
  Tensor gradient = at::empty(given.sizes(), given.options());
  if (rows_of(given) > 1) {
    store(sums.data(), gradient);
    return gradient;
  }
  std::vector<double> total(sums.begin(), sums.begin() + c);
  for (int64_t r = 1; r < rows; ++r) {
    for (int64_t i = 0; i < c; ++i) total[i] += sums[r * c + i];
  }
  store(total.data(), gradient);
  return gradient;
}

// Gradients that somebody will differentiate, or of a dy that is no plain tensor: by the
// reference, in Python.
variable_list by_reference(const Tensor& dy, const Problem& p, const Tensor& table,
                           const Tensor& inverse_count, bool wants_x) {
  using Signature = std::vector<Tensor>(
      const Tensor&, const Tensor&, const std::optional<Tensor>&, int64_t,
      const std::optional<Tensor>&, const std::optional<Tensor>&, const std::optional<Tensor>&,
      const std::optional<Tensor>&, int64_t, const Tensor&, const std::optional<Tensor>&, bool);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("normscope::backward_by_reference", "")
                             .typed<Signature>();
  const auto optional = [](const Tensor& t) {
    return t.defined() ? std::optional<Tensor>(t) : std::nullopt;
  };
  const std::vector<Tensor> found =
      op.call(dy, p.x, optional(p.groups), p.num_groups, optional(p.mask), optional(p.weight),
              optional(p.bias), optional(p.residual), p.act, table, optional(inverse_count), wants_x);
  variable_list grads(4);
  size_t next = 0;
  if (wants_x) grads[0] = found.at(next++);
  if (p.weight.defined()) grads[1] = found.at(next++);
  if (p.bias.defined()) grads[2] = found.at(next++);
  if (wants_x && p.residual.defined()) grads[3] = found.at(next++);
  return grads;
}

struct BatchNorm : torch::autograd::Function<BatchNorm> {
  using Input = std::optional<Tensor>;

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Input& weight,
                        const Input& bias, const Input& residual, const Layer* l,
                        Output* output) {
    forward_pass(*l, *output, true);
    const Tensor beside = l->act != 0 ? l->residual : Tensor();  // else its gradient is dy
    ctx->save_for_backward({x, l->weight, l->bias, beside, l->groups, l->mask});
    ctx->saved_data["table"] = output->table;  // never the buffers, which may change meanwhile
    std::vector<int64_t> how{l->act, l->num_groups, int64_t(least(*l)), l->residual.defined()};
    how.insert(how.end(), output->count.begin(), output->count.end());
    ctx->saved_data["how"] = std::move(how);
    return output->y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list given) {
    const Tensor& dy = given[0];
    variable_list grads(6);
    if (!dy.defined()) return grads;
    const auto saved = ctx->get_saved_variables();
    const auto how = ctx->saved_data["how"].toIntVector();
    const Tensor table = ctx->saved_data["table"].toTensor();
    const bool added = how[3], from_batch = how.size() > 4;  // then values of each group follow
    const Problem p{saved[0], saved[4], how[1], saved[5], saved[1], saved[2], saved[3], how[0]};
    std::array<bool, 4> wants{};  // of those inputs that there are
    size_t edge = 0;
    const std::array<bool, 4> there{true, p.weight.defined(), p.bias.defined(), added};
    for (size_t i = 0; i < 4; ++i) wants[i] = there[i] && ctx->needs_input_grad(edge++);
    const bool wants_x = wants[0] || (p.residual.defined() && wants[3]);
    const bool wants_sums = wants[1] || wants[2] || (wants_x && from_batch);
    Prepared made;
    if (!at::GradMode::is_enabled() && !is_watched() && fits(p) && is_like(dy, p.x)) {
      prepare(p, p.num_groups, double(how[2]), made);
      compute(dy, p, made, table, from_batch, wants_x, wants_sums, grads);
    } else {
      Tensor inverse_count;  // (K, 1), over the values that the statistics are functions of
      if (from_batch) {
        inverse_count = normscope::table({int64_t(how.size()) - 4, 1});
        double* into = inverse_count.mutable_data_ptr<double>();
        for (size_t k = 4; k < how.size(); ++k) *into++ = 1 / double(std::max({how[k], how[2], int64_t(1)}));
      }
      const auto found = by_reference(dy, p, table, inverse_count, wants_x);
      std::copy(found.begin(), found.end(), grads.begin());
    }
    if (added && p.act == 0) grads[3] = p.mask.defined() ? at::where(p.mask, dy, 0) : dy;
    for (size_t i = 0; i < 4; ++i) {
      if (!wants[i]) grads[i] = Tensor();
    }
    return grads;
  }

  static void compute(const Tensor& dy, const Problem& p, Prepared& made, const Tensor& table,
                      bool from_batch, bool wants_x, bool wants_sums, variable_list& grads) {
    Call& call = made.call;
    const int64_t k = call.plan.k, r = call.plan.r, c = call.plan.c;
    made.dy = dy.contiguous(made.x.format);
    call.dy = made.dy.const_data_ptr();
    call.from_batch = from_batch;
    call.mean = const_cast<double*>(table.const_data_ptr<double>());
    call.rstd = call.mean + k * c;
    std::vector<double> g, g_xhat;
    if (wants_sums) {
      g.resize(r * c);
      g_xhat.resize(r * c);
      call.sum_g = g.data();
      call.sum_g_xhat = g_xhat.data();
    }
    if (from_batch && wants_x) {
      made.means.resize(2 * k * c);
      call.mean_g = call.own_mean_g = made.means.data();
      call.mean_g_xhat = call.own_mean_g_xhat = made.means.data() + k * c;
    }
    if (wants_x) {
      grads[0] = like(made.x);
      call.out = grads[0].mutable_data_ptr();
      if (p.residual.defined()) {
        grads[3] = like(made.x);
        call.dresidual = grads[3].mutable_data_ptr();
      }
    }
    if (wants_x || wants_sums) normscope::backward(call);
    if (!wants_sums) return;
    if (p.weight.defined()) grads[1] = gradient_of(p.weight, g_xhat, r, c);
    if (p.bias.defined()) grads[2] = gradient_of(p.bias, g, r, c);
  }
};

}  // namespace

bool run(Layer l, Output& output, bool recorded) {
  if (!fits(l)) return false;
  if (!l.from_batch) {  // one row may serve all groups
    l.num_groups = rows_of(l.running_mean);
    if (std::max({l.num_groups, rows_of(l.weight), rows_of(l.bias)}) == 1) l.groups = Tensor();
  }
  const auto differentiates = [](const Tensor& t) { return t.defined() && t.requires_grad(); };
  if (at::GradMode::is_enabled() && (differentiates(l.x) || differentiates(l.weight) ||
                                     differentiates(l.bias) || differentiates(l.residual))) {
    const auto input = [](const Tensor& t) { return t.defined() ? BatchNorm::Input(t) : std::nullopt; };
    const Layer* all = &l;
    output.y =
        BatchNorm::apply(l.x, input(l.weight), input(l.bias), input(l.residual), all, &output);
    return true;
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  forward_pass(l, output, recorded);
  return true;
}

namespace {

template <bool Recorded>
std::conditional_t<Recorded, std::vector<Tensor>, std::optional<Tensor>> batch_norm(
    const Tensor& x, const std::optional<Tensor>& running_mean,
    const std::optional<Tensor>& running_var, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, bool from_batch, bool update,
    std::optional<double> momentum, double eps, const std::optional<Tensor>& tracked,
    const std::optional<Tensor>& groups, int64_t num_groups, const std::optional<Tensor>& mask,
    int64_t act, const std::optional<Tensor>& residual, int64_t min_count) {
  Output output;
  if (!run({{x, or_undefined(groups), num_groups, or_undefined(mask), or_undefined(weight),
             or_undefined(bias), or_undefined(residual), act},
            or_undefined(running_mean), or_undefined(running_var), or_undefined(tracked),
            from_batch, update, momentum, eps, min_count},
           output, Recorded)) {
    return {};
  }
  if constexpr (Recorded) {
    if (output.count.empty()) return {output.y, output.table};
    const Tensor count = table({int64_t(output.count.size())});
    std::copy(output.count.begin(), output.count.end(), count.mutable_data_ptr<double>());
    return {output.y, output.table, count};
  } else {
    return output.y;
  }
}

#define LAYER_SCHEMA                                                                             \
  "(Tensor x, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight, Tensor? bias, " \
  "bool from_batch, bool update, float? momentum, float eps, Tensor(c!)? tracked, "              \
  "Tensor? groups, int num_groups, Tensor? mask, int act, Tensor? residual, int min_count)"

TORCH_LIBRARY_FRAGMENT(normscope, m) {
  m.def("batch_norm" LAYER_SCHEMA " -> Tensor?", batch_norm<false>);
  m.def("batch_norm_recorded" LAYER_SCHEMA " -> Tensor[]", batch_norm<true>);
}

}  // namespace
}  // namespace normscope
