#include "backend/ops/rope_kv_write.h"

#include "backend/ops/check.h"

namespace qiao {

void RopeKvWrite::check() const {
  constexpr std::string_view op = "rope_kv_write";
  if (pages == nullptr) check::refuse(op, "pages are absent");
  const KvPagesSpec& spec = pages->spec();
  check::rank(op, "q", q, 3);
  const int64_t tokens = q.shape[0], width = spec.head_dim;
  check::rows(op, "q", q, DType::kF32, {tokens, q.shape[1], width});
  check::rows(op, "k", k, DType::kF32, {tokens, spec.kv_heads, width});
  check::rows(op, "v", v, DType::kF32, {tokens, spec.kv_heads, width});
  check::dense(op, "slots", slots, DType::kI32, {tokens});
  q_norm.check(op, "q_norm.gamma", width);
  k_norm.check(op, "k_norm.gamma", width);
  if (positions.present() != rotates()) {
    check::refuse(op, "one of positions and inverse_frequencies is absent, expected both or neither");
  }
  if (rotates()) check::rotation(op, q, positions, inverse_frequencies, scale);
  check::distinct(op, "q", q, "k", k);
  check::distinct(op, "q", q, "v", v);
  check::distinct(op, "k", k, "v", v);
  for (const auto& [name, heads] : {std::pair("q", &q), std::pair("k", &k), std::pair("v", &v)}) {
    check::distinct(op, name, *heads, "q_norm.gamma", q_norm.gamma);
    check::distinct(op, name, *heads, "k_norm.gamma", k_norm.gamma);
    check::distinct(op, name, *heads, "positions", positions);
    check::distinct(op, name, *heads, "inverse_frequencies", inverse_frequencies);
    check::distinct(op, name, *heads, "slots", slots);
  }
}

double RopeKvWrite::flops() const {
  const auto normed = [](const Tensor& heads, const RmsNorm& norm) {
    return norm.present ? norm.apart(heads, heads).flops() : 0;
  };
  return normed(q, q_norm) + normed(k, k_norm) + (rotates() ? rope().flops() : 0);
}

double RopeKvWrite::bytes() const {
  return static_cast<double>(2 * q.bytes() + q_norm.gamma.bytes() + k_norm.gamma.bytes() + positions.bytes() +
                             inverse_frequencies.bytes()) +
         kv_write().bytes();
}

Rope RopeKvWrite::rope() const {
  return {.q = q,
          .k = k,
          .positions = positions,
          .inverse_frequencies = inverse_frequencies,
          .layout = layout,
          .scale = scale,
          .inverse = false};
}

KvWrite RopeKvWrite::kv_write() const { return {.k = k, .v = v, .slots = slots, .pages = pages}; }

}  // namespace qiao
