#include "backend/ops/rope.h"

#include "backend/ops/check.h"

namespace qiao {

void Rope::check() const {
  constexpr std::string_view op = "rope";
  check::rank(op, "q", q, 3);
  const int64_t tokens = q.shape[0];
  const int64_t width = q.shape[2];
  check::rows(op, "q", q, DType::kF32, {tokens, q.shape[1], width});
  if (k.present()) {
    check::rank(op, "k", k, 3);
    check::rows(op, "k", k, DType::kF32, {tokens, k.shape[1], width});
  }
  check::rotation(op, q, positions, inverse_frequencies, scale);
  check::distinct(op, "q", q, "k", k);
  check::distinct(op, "q", q, "positions", positions);
  check::distinct(op, "q", q, "inverse_frequencies", inverse_frequencies);
  check::distinct(op, "k", k, "positions", positions);
  check::distinct(op, "k", k, "inverse_frequencies", inverse_frequencies);
}

double Rope::flops() const {
  const double heads = static_cast<double>(q.shape[1] + (k.present() ? k.shape[1] : 0));
  return 6.0 * static_cast<double>(q.shape[0]) * heads * static_cast<double>(inverse_frequencies.elements());
}

double Rope::bytes() const {
  const double heads = static_cast<double>(q.shape[1] + (k.present() ? k.shape[1] : 0));
  const double rotated =
      static_cast<double>(q.shape[0]) * heads * static_cast<double>(inverse_frequencies.bytes());
  return 4.0 * rotated + static_cast<double>(positions.bytes() + inverse_frequencies.bytes());
}

}  // namespace qiao
