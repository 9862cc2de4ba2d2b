#include "backend/ops/token_logprob.h"

#include <cmath>

#include "backend/ops/check.h"

namespace qiao {
namespace {

// What both directions share.
template <typename Op>
void check_logits(std::string_view name, const Op& op) {
  check::dense_weight(name, "weight", op.weight);
  check::rank(name, "x", op.x, 2);
  const int64_t tokens = op.x.shape[0];
  check::rows(name, "x", op.x, DType::kF32, {tokens, op.weight->columns()});
  check::dense(name, "labels", op.labels, DType::kI32, {tokens});
  check::dense(name, "log_sum_exp", op.log_sum_exp, DType::kF32, {tokens});
  if (!(op.temperature > 0) || !std::isfinite(op.temperature)) {
    check::refuse(name, fmt::format("temperature is {}, expected it above 0", op.temperature));
  }
  if (!(op.soft_cap >= 0) || !std::isfinite(op.soft_cap)) {
    check::refuse(name, fmt::format("soft_cap is {}, expected 0 (none) or more", op.soft_cap));
  }
  check::compute(name, *op.weight, op.compute);
  check::workspace(name, op.workspace);
}

struct NamedTensor {
  std::string_view name;
  const Tensor& tensor;
};

void check_apart(std::string_view op, std::initializer_list<NamedTensor> outputs,
                 std::initializer_list<NamedTensor> inputs) {
  for (const NamedTensor& output : outputs) {
    for (const NamedTensor& input : inputs) {
      check::distinct(op, output.name, output.tensor, input.name, input.tensor);
    }
    for (const NamedTensor& other : outputs) {
      if (&other == &output) break;
      check::distinct(op, output.name, output.tensor, other.name, other.tensor);
    }
  }
}

double products(const Tensor& x, const Weight& weight) {
  return 2.0 * static_cast<double>(x.elements()) * static_cast<double>(weight.rows());
}

}  // namespace

void TokenLogprob::check() const {
  constexpr std::string_view op = "token_logprob";
  check_logits(op, *this);
  check::dense(op, "logprob", logprob, DType::kF32, {x.shape[0]});
  check_apart(op, {{"logprob", logprob}, {"log_sum_exp", log_sum_exp}, {"workspace", workspace}},
              {{"x", x}, {"labels", labels}});
}

double TokenLogprob::flops() const { return products(x, *weight); }

double TokenLogprob::bytes() const {
  return check::weight_bytes(*weight) +
         static_cast<double>(x.bytes() + labels.bytes() + logprob.bytes() + log_sum_exp.bytes());
}

void TokenLogprobBackward::check() const {
  constexpr std::string_view op = "token_logprob_backward";
  check_logits(op, *this);
  const int64_t tokens = x.shape[0];
  check::dense(op, "dlogprob", dlogprob, DType::kF32, {tokens});
  if (!dx.present() && !dw.present()) check::refuse(op, "dx and dw are absent, expected one of them or both");
  if (dx.present()) check::rows(op, "dx", dx, DType::kF32, {tokens, weight->columns()});
  if (dw.present()) check::dense(op, "dw", dw, DType::kF32, {weight->rows(), weight->columns()});
  check_apart(op, {{"dx", dx}, {"dw", dw}, {"workspace", workspace}},
              {{"x", x}, {"labels", labels}, {"log_sum_exp", log_sum_exp}, {"dlogprob", dlogprob}});
}

double TokenLogprobBackward::flops() const {
  return products(x, *weight) * (1 + static_cast<int>(dx.present()) + static_cast<int>(dw.present()));
}

// dw is read and written.
double TokenLogprobBackward::bytes() const {
  return check::weight_bytes(*weight) + static_cast<double>(x.bytes() + labels.bytes() + log_sum_exp.bytes() +
                                                            dlogprob.bytes() + dx.bytes() + 2 * dw.bytes());
}

void TokenLoss::check() const {
  constexpr std::string_view op = "token_loss";
  check_logits(op, *this);
  const int64_t tokens = x.shape[0];
  check::dense(op, "dlogprob", dlogprob, DType::kF32, {tokens});
  check::dense(op, "logprob", logprob, DType::kF32, {tokens});
  check::rows(op, "dx", dx, DType::kF32, {tokens, weight->columns()});
  if (dw.present()) check::dense(op, "dw", dw, DType::kF32, {weight->rows(), weight->columns()});
  check_apart(
      op,
      {{"logprob", logprob}, {"log_sum_exp", log_sum_exp}, {"dx", dx}, {"dw", dw}, {"workspace", workspace}},
      {{"x", x}, {"labels", labels}, {"dlogprob", dlogprob}});
}

double TokenLoss::flops() const { return products(x, *weight) * (dw.present() ? 3 : 2); }
double TokenLoss::bytes() const { return forward().bytes() + backward().bytes(); }

TokenLogprob TokenLoss::forward() const {
  return {.x = x,
          .weight = weight,
          .labels = labels,
          .temperature = temperature,
          .soft_cap = soft_cap,
          .compute = compute,
          .logprob = logprob,
          .log_sum_exp = log_sum_exp,
          .workspace = workspace};
}

TokenLogprobBackward TokenLoss::backward() const {
  return {.x = x,
          .weight = weight,
          .labels = labels,
          .temperature = temperature,
          .soft_cap = soft_cap,
          .compute = compute,
          .log_sum_exp = log_sum_exp,
          .dlogprob = dlogprob,
          .dx = dx,
          .dw = dw,
          .workspace = workspace};
}

}  // namespace qiao
