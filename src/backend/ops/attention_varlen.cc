#include "backend/ops/attention_varlen.h"

#include <cmath>

#include "backend/ops/check.h"

namespace qiao {

void AttentionVarlen::check() const {
  constexpr std::string_view op = "attention_varlen";
  check::rank(op, "q", q, 3);
  check::rank(op, "k", k, 3);
  check::rank(op, "starts", starts, 1);
  const int64_t tokens = q.shape[0], heads = q.shape[1], kv_heads = k.shape[1], width = q.shape[2];
  check::rows(op, "q", q, DType::kF32, {tokens, heads, width});
  check::rows(op, "k", k, DType::kF32, {tokens, kv_heads, width});
  check::rows(op, "v", v, DType::kF32, {tokens, kv_heads, width});
  check::rows(op, "out", out, DType::kF32, {tokens, heads, width});
  if (width < 1) check::refuse(op, fmt::format("q is {}, expected heads of one or more", to_string(q)));
  if (kv_heads < 1 || heads < 1 || heads % kv_heads != 0) {
    check::refuse(op, fmt::format("q is {}, expected a multiple of k's {} heads", to_string(q), kv_heads));
  }
  if (starts.shape[0] < 1) check::refuse(op, "starts are empty, expected one more than sequences");
  check::dense(op, "starts", starts, DType::kI32, {starts.shape[0]});
  if (!std::isfinite(scale)) check::refuse(op, "scale is not finite");
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
  check::distinct(op, "workspace", workspace, "out", out);
  check::distinct(op, "workspace", workspace, "q", q);
  check::distinct(op, "workspace", workspace, "k", k);
  check::distinct(op, "workspace", workspace, "v", v);
}

double AttentionVarlen::flops(int64_t pairs) const {
  return 4.0 * static_cast<double>(pairs) * static_cast<double>(q.shape[1] * q.shape[2]);
}

double AttentionVarlen::bytes() const {
  return static_cast<double>(q.bytes() + k.bytes() + v.bytes() + out.bytes() + starts.bytes() + bias.bytes());
}

}  // namespace qiao
