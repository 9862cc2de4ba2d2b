#include "backend/ops/moe.h"

#include <cmath>

#include "backend/ops/check.h"

namespace qiao {

void MoeRoute::check() const {
  constexpr std::string_view op = "moe_route";
  check::rank(op, "logits", logits, 2);
  check::rank(op, "ids", ids, 2);
  const int64_t tokens = logits.shape[0];
  const int64_t picks = ids.shape[1];
  check::rows(op, "logits", logits, DType::kF32, {tokens, logits.shape[1]});
  if (picks < 1 || picks > logits.shape[1]) {
    check::refuse(op, fmt::format("ids is {}, expected from 1 to {} picks of logits {}", to_string(ids),
                                  logits.shape[1], to_string(logits)));
  }
  check::rows(op, "ids", ids, DType::kI32, {tokens, picks});
  check::rows(op, "weights", weights, DType::kF32, {tokens, picks});
  if (!std::isfinite(scale)) check::refuse(op, "scale is not finite");
  check::distinct(op, "ids", ids, "logits", logits);
  check::distinct(op, "weights", weights, "logits", logits);
  check::distinct(op, "weights", weights, "ids", ids);
}

double MoeRoute::flops() const { return 4.0 * static_cast<double>(logits.elements()); }

double MoeRoute::bytes() const { return static_cast<double>(logits.bytes() + ids.bytes() + weights.bytes()); }

void MoePermute::check() const {
  constexpr std::string_view op = "moe_permute";
  check::rank(op, "x", x, 2);
  check::rank(op, "ids", ids, 2);
  check::rank(op, "counts", counts, 1);
  const int64_t tokens = x.shape[0];
  const int64_t picks = ids.shape[1];
  check::rows(op, "x", x, DType::kF32, {tokens, x.shape[1]});
  check::rows(op, "ids", ids, DType::kI32, {tokens, picks});
  check::rows(op, "sorted", sorted, DType::kF32, {tokens * picks, x.shape[1]});
  check::dense(op, "counts", counts, DType::kI32, {counts.shape[0]});
  check::rows(op, "places", places, DType::kI32, {tokens, picks});
  if (counts.shape[0] < 1) check::refuse(op, "counts is I32[0], expected one for each expert");
  check::distinct(op, "sorted", sorted, "x", x);
  check::distinct(op, "sorted", sorted, "ids", ids);
  check::distinct(op, "sorted", sorted, "counts", counts);
  check::distinct(op, "sorted", sorted, "places", places);
  check::distinct(op, "counts", counts, "x", x);
  check::distinct(op, "counts", counts, "ids", ids);
  check::distinct(op, "counts", counts, "places", places);
  check::distinct(op, "places", places, "x", x);
  check::distinct(op, "places", places, "ids", ids);
  check::workspace(op, workspace);
  for (const auto& [name, tensor] :
       {std::pair("x", &x), {"ids", &ids}, {"sorted", &sorted}, {"counts", &counts}, {"places", &places}}) {
    check::distinct(op, "workspace", workspace, name, *tensor);
  }
}

double MoePermute::bytes() const {
  return static_cast<double>(x.bytes() + ids.bytes() + sorted.bytes() + counts.bytes() + places.bytes());
}

void MoeCombine::check() const {
  constexpr std::string_view op = "moe_combine";
  check::rank(op, "y", y, 2);
  check::rank(op, "places", places, 2);
  const int64_t tokens = y.shape[0];
  const int64_t picks = places.shape[1];
  check::rows(op, "y", y, DType::kF32, {tokens, y.shape[1]});
  check::rows(op, "places", places, DType::kI32, {tokens, picks});
  check::rows(op, "weights", weights, DType::kF32, {tokens, picks});
  check::rows(op, "sorted", sorted, DType::kF32, {tokens * picks, y.shape[1]});
  if (residual.present()) check::rows(op, "residual", residual, DType::kF32, {tokens, y.shape[1]});
  check::distinct(op, "y", y, "sorted", sorted);
  check::distinct(op, "y", y, "places", places);
  check::distinct(op, "y", y, "weights", weights);
  check::same_or_distinct(op, "y", y, "residual", residual);
}

double MoeCombine::flops() const { return 2.0 * static_cast<double>(sorted.elements()); }

double MoeCombine::bytes() const {
  return static_cast<double>(sorted.bytes() + places.bytes() + weights.bytes() + residual.bytes() +
                             y.bytes());
}

void MoeRouteBackward::check() const {
  constexpr std::string_view op = "moe_route_backward";
  check::rank(op, "logits", logits, 2);
  check::rank(op, "ids", ids, 2);
  const int64_t tokens = logits.shape[0], experts = logits.shape[1];
  const int64_t picks = ids.shape[1];
  check::rows(op, "logits", logits, DType::kF32, {tokens, experts});
  if (picks < 1 || picks > experts) {
    check::refuse(op, fmt::format("ids is {}, expected from 1 to {} picks of logits {}", to_string(ids),
                                  experts, to_string(logits)));
  }
  check::rows(op, "ids", ids, DType::kI32, {tokens, picks});
  check::rows(op, "dweights", dweights, DType::kF32, {tokens, picks});
  check::rows(op, "dlogits", dlogits, DType::kF32, {tokens, experts});
  if (!std::isfinite(scale)) check::refuse(op, "scale is not finite");
  check::distinct(op, "dlogits", dlogits, "logits", logits);
  check::distinct(op, "dlogits", dlogits, "ids", ids);
  check::distinct(op, "dlogits", dlogits, "dweights", dweights);
}

double MoeRouteBackward::flops() const {
  return 8.0 * static_cast<double>(logits.elements()) + 4.0 * static_cast<double>(ids.elements());
}

double MoeRouteBackward::bytes() const {
  return static_cast<double>(logits.bytes() + ids.bytes() + dweights.bytes() + dlogits.bytes());
}

void MoePermuteBackward::check() const {
  constexpr std::string_view op = "moe_permute_backward";
  check::rank(op, "dx", dx, 2);
  check::rank(op, "places", places, 2);
  const int64_t tokens = dx.shape[0], picks = places.shape[1];
  check::rows(op, "dx", dx, DType::kF32, {tokens, dx.shape[1]});
  check::rows(op, "places", places, DType::kI32, {tokens, picks});
  check::rows(op, "dsorted", dsorted, DType::kF32, {tokens * picks, dx.shape[1]});
  check::distinct(op, "dx", dx, "dsorted", dsorted);
  check::distinct(op, "dx", dx, "places", places);
}

double MoePermuteBackward::flops() const {
  return static_cast<double>(dsorted.elements() - (add_dx ? 0 : dx.elements()));
}

double MoePermuteBackward::bytes() const {
  return static_cast<double>(dsorted.bytes() + places.bytes() + dx.bytes() * (add_dx ? 2 : 1));
}

void MoeCombineBackward::check() const {
  constexpr std::string_view op = "moe_combine_backward";
  check::rank(op, "dy", dy, 2);
  check::rank(op, "places", places, 2);
  const int64_t tokens = dy.shape[0], columns = dy.shape[1], picks = places.shape[1];
  check::rows(op, "dy", dy, DType::kF32, {tokens, columns});
  check::rows(op, "places", places, DType::kI32, {tokens, picks});
  check::rows(op, "weights", weights, DType::kF32, {tokens, picks});
  check::rows(op, "sorted", sorted, DType::kF32, {tokens * picks, columns});
  check::rows(op, "dsorted", dsorted, DType::kF32, {tokens * picks, columns});
  check::rows(op, "dweights", dweights, DType::kF32, {tokens, picks});
  check::distinct(op, "dsorted", dsorted, "dy", dy);
  check::distinct(op, "dsorted", dsorted, "sorted", sorted);
  check::distinct(op, "dsorted", dsorted, "places", places);
  check::distinct(op, "dsorted", dsorted, "weights", weights);
  check::distinct(op, "dsorted", dsorted, "dweights", dweights);
  check::distinct(op, "dweights", dweights, "dy", dy);
  check::distinct(op, "dweights", dweights, "sorted", sorted);
  check::distinct(op, "dweights", dweights, "places", places);
  check::distinct(op, "dweights", dweights, "weights", weights);
}

double MoeCombineBackward::flops() const { return 3.0 * static_cast<double>(sorted.elements()); }

double MoeCombineBackward::bytes() const {
  return static_cast<double>(dy.bytes() + 2 * sorted.bytes() + places.bytes() + 2 * weights.bytes());
}

}  // namespace qiao
