#pragma once

#include "backend/ops/common.h"

namespace qiao {

// Log-probabilities of known tokens, of which cross-entropy and the losses of preference and reinforcement
// learning are made. The logits are never kept: they are made and used up a fixed piece of the vocabulary
// at a time, for so many rows at a time, so memory grows with neither T * V nor V.
//   z_v = cap(x[t] · W[v]) / temperature,  cap(z) = soft_cap > 0 ? soft_cap * tanh(z / soft_cap) : z
//   log_sum_exp[t] = log sum_v exp(z_v);  logprob[t] = z_label - log_sum_exp[t]
// The products with their cap are Linear's, bit for bit, the division by the temperature is Sample's, and so
// is the order of log_sum_exp: these are the bits that Sample gives for logits divided by the temperature.
// A row whose label is -1 carries no loss: its logprob and log_sum_exp are 0. Bounds, with e_v the bound of
// Linear (with kSoftCap where soft_cap > 0) over the temperature + u |z_v|:
//   log_sum_exp: max_v e_v + 2^-20 + 2^-22 |log_sum_exp|
//   logprob:     e_label + max_v e_v + 2^-20 + 2^-22 |logprob|
struct TokenLogprob {
  Tensor x;                        // F32 [T, C], rows contiguous
  const Weight* weight = nullptr;  // [V, C], one expert
  Tensor labels;                   // I32 [T], each in [-1, V): the producer's duty
  float temperature = 1.0f;        // > 0
  float soft_cap = 0.0f;           // 0: none
  Compute compute = Compute::kF32;
  Tensor logprob;      // F32 [T]
  Tensor log_sum_exp;  // F32 [T]
  Tensor workspace;    // U8 [>= Backend::workspace_bytes(*this)]

  void check() const;
  double flops() const;
  double bytes() const;
};

// Gradients of TokenLogprob: with g = dlogprob[t] and p_v = exp(z_v - log_sum_exp[t]),
//   dz_v = g * ((v == label) - p_v), over the temperature and times the soft-cap's slope: the product's
//   gradient h_v;  dx[t] = sum_v h_v W[v];  dw[v] += sum_t h_v x[t]
// The products are made again in `compute`, as the forward pass made them; its rounding of x and W is passed
// straight through. The two of the way back are LinearBackward's, in gradient_compute(compute): kBF16 rounds
// h and x to BF16; in kF32 W is dequantized to F32, x as given, and sums are in ascending order of v and of
// t. dx of a row depends on that row alone. Rows with label -1 or g = 0 give nothing, whatever their x.
// log_sum_exp is taken as given. Bounds, with e_v as above, u and gamma as in linear.h, x as it is rounded
// and |h_v| <= H_v = |g| ((v == label) + p_v) / temperature:
//   P = exp(e_v + 2 u (|z_v| + |log_sum_exp|) + 8 u) - 1
//   C = (1 + e_v temperature / soft_cap)^2, or 1 without a soft-cap
//   E_v = H_v ((1 + P)(C + 8 u)(1 + 6 u) - 1), in kBF16 that + 2^-8 (that + |h_v|) + 2^-126
//   dx: sum_v (E_v (1 + gamma_(V+2)) + gamma_(V+2) |h_v|) |W[v]|
//   dw: sum_t (E_v (1 + gamma_(T+2)) + gamma_(T+2) |h_v|) |x[t]| + gamma_(T+2) |dw before|
// each + 2^-125 * (1 + sum |g / temperature| |W or x|).
struct TokenLogprobBackward {
  Tensor x;
  const Weight* weight = nullptr;
  Tensor labels;
  float temperature = 1.0f;
  float soft_cap = 0.0f;
  Compute compute = Compute::kF32;  // as in the forward pass
  Tensor log_sum_exp;               // F32 [T]
  Tensor dlogprob;                  // F32 [T]
  Tensor dx;                        // F32 [T, C], rows contiguous, or absent; overlaps nothing
  Tensor dw;                        // F32 [V, C], dense, or absent; dx and dw are not both absent
  Tensor workspace;                 // U8 [>= Backend::workspace_bytes(*this)]

  void check() const;
  double flops() const;
  double bytes() const;
};

// TokenLogprob and TokenLogprobBackward in one, where the loss's slopes are known beforehand, as
// cross-entropy's are: the products need be made once. The bits of the two, one after the other, where x is
// finite. A chip without a kernel for it runs those two.
struct TokenLoss {
  Tensor x;
  const Weight* weight = nullptr;
  Tensor labels;
  float temperature = 1.0f;
  float soft_cap = 0.0f;
  Compute compute = Compute::kF32;
  Tensor dlogprob;              // F32 [T]
  Tensor logprob, log_sum_exp;  // F32 [T]
  Tensor dx;                    // F32 [T, C], rows contiguous; overlaps nothing
  Tensor dw;                    // F32 [V, C], dense, or absent
  Tensor workspace;             // U8 [>= Backend::workspace_bytes(*this)]

  void check() const;
  double flops() const;
  double bytes() const;
  TokenLogprob forward() const;
  TokenLogprobBackward backward() const;
};

}  // namespace qiao
