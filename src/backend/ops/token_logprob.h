#pragma once

#include "backend/ops/common.h"

namespace qiao {

// Log-probabilities of known tokens, of which cross-entropy and the losses of preference and reinforcement
// learning are made. The logits are never kept: they are made and used up a fixed piece of the vocabulary
// at a time, so memory does not grow with T * V.
//   z_v = cap((x[t] · W[v]) ) / temperature,  cap(z) = soft_cap > 0 ? soft_cap * tanh(z / soft_cap) : z
//   log_sum_exp[t] = log sum_v exp(z_v);  logprob[t] = z_label - log_sum_exp[t]
// The products are Linear's, bit for bit, and log_sum_exp is taken in Sample's order, so that these are the
// bits that sampling gave. A row whose label is -1 carries no loss: its logprob is 0.
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
//   dz_v = g * ((v == label) - p_v), through the temperature and the soft-cap's slope to the product's
//   gradient; dx[t] = sum_v dz_v W[v];  dw[v] += sum_t dz_v x[t]
// The products are made again in kF32. Rows with label -1 or g = 0 give nothing.
struct TokenLogprobBackward {
  Tensor x;
  const Weight* weight = nullptr;
  Tensor labels;
  float temperature = 1.0f;
  float soft_cap = 0.0f;
  Compute compute = Compute::kF32;  // of the products, as in the forward pass
  Tensor log_sum_exp;               // F32 [T]
  Tensor dlogprob;                  // F32 [T]
  Tensor dx;                        // F32 [T, C], rows contiguous, or absent; overlaps nothing
  Tensor dw;                        // F32 [V, C], dense, or absent
  Tensor workspace;                 // U8 [>= Backend::workspace_bytes(*this)]

  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
