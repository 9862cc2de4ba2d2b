// What the case tables of routing share with those of its ways back.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "backend/conformance/harness.h"
#include "backend/ops/moe.h"

namespace qiao::conformance {

// The relative error of a weight (ops/moe.h); `below` is how far the logit lies under the largest.
template <typename Op>
double route_weight_bound(const Op& op, double below) {
  const double normalised = op.normalize ? static_cast<double>(op.ids.shape[1]) : 0;
  if (op.kind == MoeRoute::Kind::kSigmoid) return (16 + normalised) * kUnit;
  return (16 + static_cast<double>(op.logits.shape[1]) + normalised + 2 * below) * kUnit;
}

inline double largest_logit(Guarded& logits, int64_t t, int64_t experts) {
  double largest = -INFINITY;
  for (int64_t e = 0; e < experts; ++e)
    largest = std::max(largest, static_cast<double>(logits.host_at(t * experts + e)));
  return largest;
}

// Places of T * k rows, each once.
inline void shuffle_places(Harness& h, Guarded* places) {
  for (int64_t i = 0; i < places->elements(); ++i) places->host_at<int32_t>(i) = static_cast<int32_t>(i);
  for (int64_t i = places->elements(); i > 1; --i) {
    std::swap(places->host_at<int32_t>(i - 1), places->host_at<int32_t>(h.between(0, i - 1)));
  }
  places->upload();
}

}  // namespace qiao::conformance
