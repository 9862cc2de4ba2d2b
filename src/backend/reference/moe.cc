// Part of the law (reference_class.h): routing to experts and back.
#include "backend/ops/moe.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {

std::vector<double> exact_scores(const MoeRoute& op) {
  const int64_t tokens = op.logits.shape[0], experts = op.logits.shape[1];
  std::vector<double> scores(static_cast<size_t>(tokens * experts));
  for (int64_t t = 0; t < tokens; ++t) {
    double* row = scores.data() + t * experts;
    double largest = -INFINITY, sum = 0;
    for (int64_t e = 0; e < experts; ++e)
      largest = std::max(largest, static_cast<double>(at(op.logits, t, e)));
    for (int64_t e = 0; e < experts; ++e) {
      const double logit = at(op.logits, t, e);
      row[e] =
          op.kind == MoeRoute::Kind::kSoftmax ? std::exp(logit - largest) : 1.0 / (1.0 + std::exp(-logit));
      sum += row[e];
    }
    if (op.kind == MoeRoute::Kind::kSoftmax) {
      for (int64_t e = 0; e < experts; ++e) row[e] /= sum;
    }
  }
  return scores;
}

std::vector<double> exact_route_weights(const MoeRoute& op, const std::vector<double>& scores,
                                        const int32_t* ids) {
  const int64_t tokens = op.logits.shape[0], experts = op.logits.shape[1], picks = op.ids.shape[1];
  std::vector<double> weights(static_cast<size_t>(tokens * picks));
  for (int64_t t = 0; t < tokens; ++t) {
    double sum = 0;
    for (int64_t j = 0; j < picks; ++j) {
      const auto i = static_cast<size_t>(t * picks + j);
      weights[i] = scores[static_cast<size_t>(t * experts + ids[i])];
      sum += weights[i];
    }
    for (int64_t j = 0; j < picks; ++j) {
      weights[static_cast<size_t>(t * picks + j)] *=
          static_cast<double>(op.scale) / (op.normalize ? sum : 1.0);
    }
  }
  return weights;
}

void ReferenceBackend::do_moe_route(const MoeRoute& op) {
  const int64_t tokens = op.logits.shape[0], experts = op.logits.shape[1], picks = op.ids.shape[1];
  const std::vector<double> scores = exact_scores(op);
  std::vector<int32_t> ids;
  std::vector<int32_t> order(static_cast<size_t>(experts));
  for (int64_t t = 0; t < tokens; ++t) {
    const double* row = scores.data() + t * experts;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return row[a] > row[b]; });
    ids.insert(ids.end(), order.begin(), order.begin() + picks);
  }
  const std::vector<double> weights = exact_route_weights(op, scores, ids.data());
  for (int64_t i = 0; i < tokens * picks; ++i) {
    int_at(op.ids, i / picks, i % picks) = ids[static_cast<size_t>(i)];
    at(op.weights, i / picks, i % picks) = static_cast<float>(weights[static_cast<size_t>(i)]);
  }
}

void ReferenceBackend::do_moe_permute(const MoePermute& op) {
  const int64_t tokens = op.ids.shape[0], picks = op.ids.shape[1];
  int32_t place = 0;
  for (int64_t e = 0; e < op.counts.shape[0]; ++e) {
    const int32_t first = place;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < picks; ++j) {
        if (int_at(op.ids, t, j) != e) continue;
        int_at(op.places, t, j) = place;
        for (int64_t c = 0; c < op.x.shape[1]; ++c) at(op.sorted, place, c) = at(op.x, t, c);
        ++place;
      }
    }
    op.counts.as<int32_t>()[e] = place - first;
  }
}

std::vector<double> exact_combine(const MoeCombine& op) {
  const int64_t tokens = op.y.shape[0], width = op.y.shape[1];
  std::vector<double> y(static_cast<size_t>(tokens * width));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < width; ++c) {
      double& sum = y[static_cast<size_t>(t * width + c)];
      if (op.residual.present()) sum = at(op.residual, t, c);
      for (int64_t j = 0; j < op.places.shape[1]; ++j) {
        sum += static_cast<double>(at(op.weights, t, j)) *
               static_cast<double>(at(op.sorted, int_at(op.places, t, j), c));
      }
    }
  }
  return y;
}

void ReferenceBackend::do_moe_combine(const MoeCombine& op) {
  const std::vector<double> y = exact_combine(op);
  for (int64_t t = 0; t < op.y.shape[0]; ++t) {
    for (int64_t c = 0; c < op.y.shape[1]; ++c) {
      at(op.y, t, c) = static_cast<float>(y[static_cast<size_t>(t * op.y.shape[1] + c)]);
    }
  }
}

RouteGradients exact_route_backward(const MoeRouteBackward& op) {
  const int64_t tokens = op.logits.shape[0], experts = op.logits.shape[1], picks = op.ids.shape[1];
  const bool sigmoid = op.kind == MoeRoute::Kind::kSigmoid;
  MoeRoute forward;
  forward.logits = op.logits;
  forward.kind = op.kind;
  const std::vector<double> scores = exact_scores(forward);
  RouteGradients g;
  g.dlogits.resize(scores.size());
  g.score.resize(scores.size());
  g.gradient.resize(scores.size());
  g.factor.assign(scores.size(), 1.0);
  for (int64_t t = 0; t < tokens; ++t) {
    const auto row = static_cast<size_t>(t * experts);
    double picked_sum = 0;
    for (int64_t j = 0; j < picks; ++j) {
      picked_sum += scores[row + static_cast<size_t>(int_at(op.ids, t, j))];
    }
    std::vector<double> slope(static_cast<size_t>(experts));  // g, with its sign
    double sum = 0;                                           // S
    for (int64_t j = 0; j < picks; ++j) {
      const auto e = static_cast<size_t>(int_at(op.ids, t, j));
      slope[e] = static_cast<double>(op.scale) * static_cast<double>(at(op.dweights, t, j));
      const double q = scores[row + e] / (op.normalize ? picked_sum : 1.0);
      if (!sigmoid || op.normalize) sum += q * slope[e];
      g.score[row + e] = q;
      g.picked_score.push_back(q);
      g.picked_gradient.push_back(std::abs(slope[e]));
    }
    for (size_t e = 0; e < static_cast<size_t>(experts); ++e) {
      if (!sigmoid && !op.normalize) g.score[row + e] = scores[row + e];
      if (sigmoid) g.factor[row + e] = 1.0 - scores[row + e];
      g.gradient[row + e] = std::abs(slope[e]);
      g.dlogits[row + e] = g.score[row + e] * g.factor[row + e] * (slope[e] - sum);
    }
  }
  return g;
}

void ReferenceBackend::do_moe_route_backward(const MoeRouteBackward& op) {
  const RouteGradients g = exact_route_backward(op);
  for (int64_t t = 0; t < op.dlogits.shape[0]; ++t) {
    for (int64_t e = 0; e < op.dlogits.shape[1]; ++e) {
      at(op.dlogits, t, e) = static_cast<float>(g.dlogits[static_cast<size_t>(t * op.dlogits.shape[1] + e)]);
    }
  }
}

GradientSums exact_permute_backward(const MoePermuteBackward& op) {
  const int64_t width = op.dx.shape[1];
  GradientSums g(op.dx.elements());
  for (int64_t i = 0; i < op.dx.elements(); ++i) {
    const int64_t t = i / width, c = i % width;
    if (op.add_dx) g.begin(i, at(op.dx, t, c));
    for (int64_t j = 0; j < op.places.shape[1]; ++j) g.add(i, at(op.dsorted, int_at(op.places, t, j), c), 1);
  }
  return g;
}

void ReferenceBackend::do_moe_permute_backward(const MoePermuteBackward& op) {
  const GradientSums g = exact_permute_backward(op);
  const int64_t width = op.dx.shape[1];
  for (int64_t i = 0; i < op.dx.elements(); ++i) {
    at(op.dx, i / width, i % width) = static_cast<float>(g.sum[static_cast<size_t>(i)]);
  }
}

CombineGradients exact_combine_backward(const MoeCombineBackward& op) {
  const int64_t tokens = op.dy.shape[0], width = op.dy.shape[1], picks = op.places.shape[1];
  CombineGradients g{std::vector<double>(static_cast<size_t>(tokens * picks * width)),
                     GradientSums(tokens * picks)};
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < picks; ++j) {
      const int64_t place = int_at(op.places, t, j);
      for (int64_t c = 0; c < width; ++c) {
        const double dy = at(op.dy, t, c);
        g.dsorted[static_cast<size_t>(place * width + c)] = static_cast<double>(at(op.weights, t, j)) * dy;
        g.dweights.add(t * picks + j, dy, at(op.sorted, place, c));
      }
    }
  }
  return g;
}

void ReferenceBackend::do_moe_combine_backward(const MoeCombineBackward& op) {
  const CombineGradients g = exact_combine_backward(op);
  const int64_t width = op.dy.shape[1], picks = op.places.shape[1];
  for (int64_t i = 0; i < op.dsorted.elements(); ++i) {
    at(op.dsorted, i / width, i % width) = static_cast<float>(g.dsorted[static_cast<size_t>(i)]);
  }
  for (int64_t i = 0; i < op.dweights.elements(); ++i) {
    at(op.dweights, i / picks, i % picks) = static_cast<float>(g.dweights.sum[static_cast<size_t>(i)]);
  }
}

}  // namespace qiao::reference
