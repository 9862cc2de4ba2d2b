#include "backend/ops/attention.h"

#include <cmath>

#include "backend/ops/check.h"

namespace qiao {

void KvWrite::check() const {
  constexpr std::string_view op = "kv_write";
  if (pages == nullptr) check::refuse(op, "pages are absent");
  check::rank(op, "slots", slots, 1);
  const KvPagesSpec& spec = pages->spec();
  check::dense(op, "slots", slots, DType::kI32, {slots.shape[0]});
  check::rows(op, "k", k, DType::kF32, {slots.shape[0], spec.kv_heads, spec.head_dim});
  check::rows(op, "v", v, DType::kF32, {slots.shape[0], spec.kv_heads, spec.head_dim});
}

double KvWrite::bytes() const {
  return static_cast<double>(k.bytes() + v.bytes() + slots.bytes()) +
         static_cast<double>(2 * slots.shape[0] * pages->spec().kv_heads *
                             kv_row_bytes(pages->spec().dtype, pages->spec().head_dim));
}

void AttentionPaged::check() const {
  constexpr std::string_view op = "attention_paged";
  if (pages == nullptr) check::refuse(op, "pages are absent");
  check::rank(op, "q", q, 3);
  check::rank(op, "page_table", page_table, 2);
  const KvPagesSpec& spec = pages->spec();
  const int64_t sequences = page_table.shape[0];
  check::rows(op, "q", q, DType::kF32, {q.shape[0], q.shape[1], spec.head_dim});
  if (q.shape[1] < 1 || q.shape[1] % spec.kv_heads != 0) {
    check::refuse(
        op, fmt::format("q is {}, expected a multiple of the pages' {} heads", to_string(q), spec.kv_heads));
  }
  check::rows(op, "out", out, DType::kF32, {q.shape[0], q.shape[1], spec.head_dim});
  check::rows(op, "page_table", page_table, DType::kI32, {sequences, page_table.shape[1]});
  check::dense(op, "lengths", lengths, DType::kI32, {sequences});
  check::dense(op, "query_starts", query_starts, DType::kI32, {sequences + 1});
  if (window < 0) check::refuse(op, fmt::format("window is {}, expected 0 (unlimited) or more", window));
  if (!std::isfinite(scale)) check::refuse(op, "scale is not finite");
  if (!(soft_cap >= 0) || !std::isfinite(soft_cap)) {
    check::refuse(op, fmt::format("soft_cap is {}, expected 0 (none) or more", soft_cap));
  }
  if (compute == Compute::kQ8) check::refuse(op, "compute is Q8, expected F32 or BF16");
  check::workspace(op, workspace);
  check::same_or_distinct(op, "out", out, "q", q);
  check::distinct(op, "out", out, "page_table", page_table);
  check::distinct(op, "out", out, "lengths", lengths);
  check::distinct(op, "out", out, "query_starts", query_starts);
  check::distinct(op, "workspace", workspace, "out", out);
  check::distinct(op, "workspace", workspace, "q", q);
}

double AttentionPaged::flops(int64_t pairs) const {
  return 4.0 * static_cast<double>(pairs) * static_cast<double>(q.shape[1] * q.shape[2]);
}

double AttentionPaged::bytes(int64_t keys) const {
  const KvPagesSpec& spec = pages->spec();
  const double token = 2.0 * static_cast<double>(spec.kv_heads * kv_row_bytes(spec.dtype, spec.head_dim));
  return static_cast<double>(keys) * token + static_cast<double>(q.bytes() + out.bytes());
}

}  // namespace qiao
