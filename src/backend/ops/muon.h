#pragma once

#include "backend/ops/common.h"

namespace qiao {

// Muon (Jordan 2024) for one matrix: the step is its momentum's nearest matrix of orthonormal rows or
// columns, roughly, by five steps of Newton and Schulz's kind. As torch.optim.Muon, in F32 where that
// computes the five steps in BF16:
//   g = gradient_scale * gradient
//   m = beta * m + (1 - beta) * g
//   u = (1 - beta) * g + beta * m with nesterov, else m
//   X = u / max(|u|, 1e-7), |u| the root of the sum of squares; transposed where N > K
//   five times: A = X X^T, X = a X + (b A + c A A) X, with a = 3.4445, b = -4.7750, c = 2.0315
//   p = (1 - learning_rate * weight_decay) * p - learning_rate * adjustment * X, transposed back
// The adjustment is sqrt(max(1, N / K)) (kOriginal), or 0.2 sqrt(max(N, K)) (kMatchRmsAdamW, Liu et al.
// 2025), with which learning rate and weight decay are AdamW's. Sums run in ascending order, constants are
// computed in float64 and rounded once, every operation is rounded by itself (a product and its addition to a
// sum may be one); nothing depends on the number of threads.
//
// Bounds, gamma_m and u as in linear.h, with r = min(N, K), k = max(N, K), || || Frobenius norms, |X|
// absolute values element by element:
//   m: gamma_5 * M + 2^-124, M = |beta m| + |(1 - beta) g|
//   p: gamma_3 * |(1 - learning_rate * weight_decay) p| + learning_rate * adjustment * (gamma_3 |X| + 1.01 E)
//      + 2^-124
// E bounds ||X - X'|| of the exact X and the computed X'. A step of Newton and Schulz maps each singular
// value s to f(s) = a s + b s^3 + c s^5, so it spreads an error at most by the largest |f'| up to the largest
// singular value (divided differences of an odd function), which 1 bounds before the first step and max |f|
// after it. What is rounded in a step, with t = ||X|| and s the largest singular value, both with E added:
//   dA = gamma_(k+2) (|| |X| |X|^T || + 2 t E + E^2)
//   dB = |b| dA + |c| (2 s^2 dA + dA^2) + gamma_(r+4) (|b| (||A|| + dA') + |c| (|| |A| |A| || + 2 ||A|| dA'
//        + dA'^2)), dA' = dA + 2 s E: what the computed A is off the exact one
//   E  = max |f'| E + s dB + gamma_(r+4) (|a| t + (|b| (||A|| + dA') + |c| (||A|| + dA')^2 + dB) t)
// and before the first: E = (2 ||gamma_8 (|(1 - beta) g| + beta M) + 2^-124|| / max(|u|, 1e-7)) + gamma_4, or
// without nesterov gamma_5 M. Each step also adds 2^-120 N K for what underflows. A bound of the worst
// case, which grows faster than r: it says something up to some dozens of rows.
struct Muon {
  enum class Adjustment : uint8_t { kOriginal, kMatchRmsAdamW };

  Tensor parameters, gradients, momentum;  // F32 [N, K], dense, distinct
  double learning_rate = 1e-3, beta = 0.95, weight_decay = 0.1;
  bool nesterov = true;
  Adjustment adjustment = Adjustment::kOriginal;
  double gradient_scale = 1.0;  // of clipping
  Tensor workspace;             // U8 [>= Backend::workspace_bytes(*this)]

  static constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315, kLeastNorm = 1e-7;
  static constexpr int kSteps = 5;

  double step_size() const;  // learning_rate * adjustment
  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
