#include "backend/ops/attention_varlen.h"

#include <cmath>

#include "backend/ops/check.h"

namespace qiao {
namespace {

// What both ways read: the sequences, and what limits and shapes their scores.
template <typename Op>
void check_sequences(std::string_view name, const Op& op) {
  check::rank(name, "q", op.q, 3);
  check::rank(name, "k", op.k, 3);
  check::rank(name, "starts", op.starts, 1);
  const int64_t tokens = op.q.shape[0], heads = op.q.shape[1], kv_heads = op.k.shape[1],
                width = op.q.shape[2];
  check::rows(name, "q", op.q, DType::kF32, {tokens, heads, width});
  check::rows(name, "k", op.k, DType::kF32, {tokens, kv_heads, width});
  check::rows(name, "v", op.v, DType::kF32, {tokens, kv_heads, width});
  check::rows(name, "out", op.out, DType::kF32, {tokens, heads, width});
  if (width < 1) check::refuse(name, fmt::format("q is {}, expected heads of one or more", to_string(op.q)));
  if (kv_heads < 1 || heads < 1 || heads % kv_heads != 0)
    check::refuse(name,
                  fmt::format("q is {}, expected a multiple of k's {} heads", to_string(op.q), kv_heads));
  if (op.starts.shape[0] < 1) check::refuse(name, "starts are empty, expected one more than sequences");
  check::dense(name, "starts", op.starts, DType::kI32, {op.starts.shape[0]});
  if (!std::isfinite(op.scale)) check::refuse(name, "scale is not finite");
  if (op.window < 0)
    check::refuse(name, fmt::format("window is {}, expected 0 (unlimited) or more", op.window));
  if (op.window > 0 && !op.causal)
    check::refuse(name, fmt::format("window is {}, expected 0 where attention is not causal", op.window));
  if (!(op.soft_cap >= 0) || !std::isfinite(op.soft_cap))
    check::refuse(name, fmt::format("soft_cap is {}, expected 0 (none) or more", op.soft_cap));
  if (op.compute != Compute::kF32 && op.compute != Compute::kBF16)
    check::refuse(name, "compute is of products with weights alone, expected F32 or BF16");
}

}  // namespace

void AttentionVarlen::check() const {
  constexpr std::string_view op = "attention_varlen";
  check_sequences(op, *this);
  const int64_t tokens = q.shape[0], heads = q.shape[1];
  if (log_sum_exp.present()) check::dense(op, "log_sum_exp", log_sum_exp, DType::kF32, {tokens, heads});
  if (bias.present()) {
    check::rank(op, "bias", bias, 2);
    check::dense(op, "bias", bias, DType::kF32, {heads, bias.shape[1]});
    if (bias.shape[1] % 2 == 0)
      check::refuse(op, fmt::format("bias is {}, expected an odd number of distances", to_string(bias)));
  }
  check::workspace(op, workspace);
  check::distinct(op, "out", out, "q", q);
  check::distinct(op, "out", out, "k", k);
  check::distinct(op, "out", out, "v", v);
  check::distinct(op, "out", out, "starts", starts);
  check::distinct(op, "out", out, "bias", bias);
  check::distinct(op, "log_sum_exp", log_sum_exp, "out", out);
  check::distinct(op, "log_sum_exp", log_sum_exp, "q", q);
  check::distinct(op, "log_sum_exp", log_sum_exp, "k", k);
  check::distinct(op, "log_sum_exp", log_sum_exp, "v", v);
  check::distinct(op, "log_sum_exp", log_sum_exp, "starts", starts);
  check::distinct(op, "log_sum_exp", log_sum_exp, "bias", bias);
  check::distinct(op, "workspace", workspace, "out", out);
  check::distinct(op, "workspace", workspace, "log_sum_exp", log_sum_exp);
  check::distinct(op, "workspace", workspace, "q", q);
  check::distinct(op, "workspace", workspace, "k", k);
  check::distinct(op, "workspace", workspace, "v", v);
}

double AttentionVarlen::flops(int64_t pairs) const {
  return 4.0 * static_cast<double>(pairs) * static_cast<double>(q.shape[1] * q.shape[2]);
}

double AttentionVarlen::bytes() const {
  return static_cast<double>(q.bytes() + k.bytes() + v.bytes() + out.bytes() + starts.bytes() + bias.bytes() +
                             log_sum_exp.bytes());
}

void AttentionVarlenBackward::check() const {
  constexpr std::string_view op = "attention_varlen_backward";
  check_sequences(op, *this);
  const int64_t tokens = q.shape[0], heads = q.shape[1], kv_heads = k.shape[1], width = q.shape[2];
  check::dense(op, "log_sum_exp", log_sum_exp, DType::kF32, {tokens, heads});
  check::rows(op, "dout", dout, DType::kF32, {tokens, heads, width});
  check::rows(op, "dq", dq, DType::kF32, {tokens, heads, width});
  check::rows(op, "dk", dk, DType::kF32, {tokens, kv_heads, width});
  check::rows(op, "dv", dv, DType::kF32, {tokens, kv_heads, width});
  check::workspace(op, workspace);
  struct Named {
    std::string_view name;
    const Tensor& tensor;
  };
  const Named inputs[] = {{"q", q},           {"k", k},     {"v", v},
                          {"starts", starts}, {"out", out}, {"log_sum_exp", log_sum_exp},
                          {"dout", dout}};
  const Named outputs[] = {{"dq", dq}, {"dk", dk}, {"dv", dv}, {"workspace", workspace}};
  for (size_t i = 0; i < std::size(outputs); ++i) {
    for (const Named& input : inputs) {
      check::distinct(op, outputs[i].name, outputs[i].tensor, input.name, input.tensor);
    }
    for (size_t j = 0; j < i; ++j) {
      check::distinct(op, outputs[i].name, outputs[i].tensor, outputs[j].name, outputs[j].tensor);
    }
  }
}

// Five products of [queries, keys] and D, where the forward pass has two.
double AttentionVarlenBackward::flops(int64_t pairs) const {
  return 10.0 * static_cast<double>(pairs) * static_cast<double>(q.shape[1] * q.shape[2]);
}

double AttentionVarlenBackward::bytes() const {
  return static_cast<double>(q.bytes() + k.bytes() + v.bytes() + starts.bytes() + out.bytes() +
                             log_sum_exp.bytes() + dout.bytes() + dq.bytes() + dk.bytes() + dv.bytes());
}

}  // namespace qiao
