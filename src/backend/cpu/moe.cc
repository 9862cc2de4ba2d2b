// Routing is E scores a token and a few picks: arithmetic is nothing, so it stays in plain loops. Permute and
// combine move T * k rows: the limit is memory; rows are shared out over the threads.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/moe_inl.h"
#include "backend/cpu/simd_generic.h"

namespace qiao::cpu {
namespace {

// Ascending as the float is; both zeros equal; NaN below everything, so that it is picked last.
int32_t order_key(float value) {
  if (std::isnan(value)) return INT32_MIN;
  const int32_t bits = std::bit_cast<int32_t>(value);
  return bits >= 0 ? bits : -(bits & INT32_MAX);
}

void route_token(const MoeRoute& op, int64_t t) {
  const int64_t experts = op.logits.shape[1], picks = op.ids.shape[1];
  const auto logit = [&](int64_t e) {
    return op.logits.as<float>()[t * op.logits.stride[0] + e * op.logits.stride[1]];
  };
  int32_t* ids = op.ids.as<int32_t>() + t * op.ids.stride[0];
  float* weights = op.weights.as<float>() + t * op.weights.stride[0];
  float largest = -INFINITY;
  for (int64_t e = 0; e < experts; ++e) largest = std::max(largest, logit(e));
  const bool softmax = op.kind == MoeRoute::Kind::kSoftmax;
  const auto score = [&](float x) {
    return softmax ? std::exp(static_cast<double>(x) - static_cast<double>(largest))
                   : 1.0 / (1.0 + std::exp(-static_cast<double>(x)));
  };
  // The next pick is the first after the last one in (score descending, expert ascending): no marks are kept.
  double picked_sum = 0;
  int32_t last_key = 0;
  int64_t last = -1;
  for (int64_t j = 0; j < picks; ++j) {
    int64_t best = -1;
    int32_t best_key = 0;
    for (int64_t e = 0; e < experts; ++e) {
      const int32_t key = order_key(logit(e));
      const bool open = last < 0 || key < last_key || (key == last_key && e > last);
      if (open && (best < 0 || key > best_key)) {
        best = e;
        best_key = key;
      }
    }
    last = best;
    last_key = best_key;
    ids[j * op.ids.stride[1]] = static_cast<int32_t>(best);
    picked_sum += score(logit(best));
  }
  double divisor = 1;
  if (op.normalize) {
    divisor = picked_sum;
  } else if (softmax) {
    divisor = 0;
    for (int64_t e = 0; e < experts; ++e) divisor += score(logit(e));
  }
  for (int64_t j = 0; j < picks; ++j) {
    const double weight = score(logit(ids[j * op.ids.stride[1]])) / divisor;
    weights[j * op.weights.stride[1]] = static_cast<float>(weight * static_cast<double>(op.scale));
  }
}

// In float64, as the forward pass: the formula of ops/moe.h.
void route_back_token(const MoeRouteBackward& op, int64_t t) {
  const int64_t experts = op.logits.shape[1], picks = op.ids.shape[1];
  const float* logits = op.logits.as<float>() + t * op.logits.stride[0];
  float* dlogits = op.dlogits.as<float>() + t * op.dlogits.stride[0];
  const bool softmax = op.kind == MoeRoute::Kind::kSoftmax;
  const float largest = *std::max_element(logits, logits + experts);
  const auto score = [&](int64_t e) {
    const auto x = static_cast<double>(logits[e]);
    return softmax ? std::exp(x - static_cast<double>(largest)) : 1.0 / (1.0 + std::exp(-x));
  };
  const auto pick = [&](int64_t j) -> int64_t {
    return op.ids.as<int32_t>()[t * op.ids.stride[0] + j * op.ids.stride[1]];
  };
  const auto gradient = [&](int64_t j) {
    return static_cast<double>(op.scale) *
           static_cast<double>(
               op.dweights.as<float>()[t * op.dweights.stride[0] + j * op.dweights.stride[1]]);
  };
  double divisor = 1;
  if (op.normalize) {
    divisor = 0;
    for (int64_t j = 0; j < picks; ++j) divisor += score(pick(j));
  } else if (softmax) {
    divisor = 0;
    for (int64_t e = 0; e < experts; ++e) divisor += score(e);
  }
  double mean = 0;  // S
  for (int64_t j = 0; (softmax || op.normalize) && j < picks; ++j)
    mean += score(pick(j)) / divisor * gradient(j);
  for (int64_t e = 0; e < experts; ++e)
    dlogits[e] = softmax && !op.normalize ? static_cast<float>(score(e) / divisor * -mean) : 0.0f;
  for (int64_t j = 0; j < picks; ++j) {
    const double s = score(pick(j));
    const double factor = softmax ? 1.0 : 1.0 - s;
    dlogits[pick(j)] = static_cast<float>(s / divisor * factor * (gradient(j) - mean));
  }
}

}  // namespace

const MoeKernels kMoeGeneric = moe_kernels<generic::Simd>();

void CpuBackend::do_moe_route(const MoeRoute& op) {
  pool_.parallel_for(op.logits.shape[0], 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) route_token(op, t);
  });
}

void CpuBackend::do_moe_permute(const MoePermute& op) {
  const int64_t tokens = op.ids.shape[0], picks = op.ids.shape[1], columns = op.x.shape[1];
  const int64_t experts = op.counts.shape[0], step = op.counts.stride[0];
  int32_t* counts = op.counts.as<int32_t>();
  const auto id = [&](int64_t t, int64_t j) {
    return op.ids.as<int32_t>()[t * op.ids.stride[0] + j * op.ids.stride[1]];
  };
  const auto place = [&](int64_t t, int64_t j) -> int32_t& {
    return op.places.as<int32_t>()[t * op.places.stride[0] + j * op.places.stride[1]];
  };
  // A counting sort inside `counts`: how many, then where each expert begins, then (after placing) where it
  // ends, and from the ends how many again.
  for (int64_t e = 0; e < experts; ++e) counts[e * step] = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < picks; ++j) ++counts[id(t, j) * step];
  }
  int32_t begin = 0;
  for (int64_t e = 0; e < experts; ++e) begin += std::exchange(counts[e * step], begin);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < picks; ++j) place(t, j) = counts[id(t, j) * step]++;
  }
  for (int64_t e = experts - 1; e > 0; --e) counts[e * step] -= counts[(e - 1) * step];

  pool_.parallel_for(tokens, row_grain(columns * picks), [&](int64_t first, int64_t end, int) {
    for (int64_t t = first; t < end; ++t) {
      for (int64_t j = 0; j < picks; ++j) {
        std::memcpy(op.sorted.as<float>() + place(t, j) * op.sorted.stride[0],
                    op.x.as<float>() + t * op.x.stride[0], static_cast<size_t>(columns) * sizeof(float));
      }
    }
  });
}

void CpuBackend::do_moe_combine(const MoeCombine& op) {
  const MoeKernels& kernels = choose(kMoeGeneric, kMoeAvx2, kMoeAvx512);
  pool_.parallel_for(op.y.shape[0], row_grain(op.y.shape[1] * (op.places.shape[1] + 1)),
                     [&](int64_t begin, int64_t end, int) { kernels.combine(op, begin, end); });
}

void CpuBackend::do_moe_route_backward(const MoeRouteBackward& op) {
  pool_.parallel_for(op.logits.shape[0], 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) route_back_token(op, t);
  });
}

void CpuBackend::do_moe_permute_backward(const MoePermuteBackward& op) {
  const MoeKernels& kernels = choose(kMoeGeneric, kMoeAvx2, kMoeAvx512);
  pool_.parallel_for(op.dx.shape[0], row_grain(op.dx.shape[1] * (op.places.shape[1] + 1)),
                     [&](int64_t begin, int64_t end, int) { kernels.permute_backward(op, begin, end); });
}

void CpuBackend::do_moe_combine_backward(const MoeCombineBackward& op) {
  const MoeKernels& kernels = choose(kMoeGeneric, kMoeAvx2, kMoeAvx512);
  pool_.parallel_for(op.dy.shape[0], row_grain(op.dy.shape[1] * (2 * op.places.shape[1] + 1)),
                     [&](int64_t begin, int64_t end, int) { kernels.combine_backward(op, begin, end); });
}

}  // namespace qiao::cpu
