#pragma once

#include "backend/ops/norm.h"

namespace qiao {

// y[t, n] = activation(sum_k x[t, k] * W[n, k] + bias[n]) + residual[t, n].
//
// The sum runs over k in one order, which N, K and the chip alone decide, in the accumulator's format,
// rounded always in the same way: a row's result depends on that row alone, never on T (batch invariance).
// Dequantized weights: F32, F16 and BF16 exactly; block formats as the format's home defines them
// (ggml-quants.c, dequantize_row_*): scale times quant and the minimum, both exact in F32, and their sum
// rounded to F32 for kF32, not rounded for kQ8; F8_128's scale times number rounded to F32. Bound, element by
// element, with u = 2^-24 and gamma_m = m*u / (1 - m*u):
//   sum:        gamma_m * (M + |bias|) + 2^-126 * (m + sum_k |x'| + sum_k |w'|) + (for kF8) e
//   activation: 1.13 (1 without one or with kSoftCap; the largest slope) * that
//               + 16 u * (|sum + bias| + |activation|), as in gated_activation.h
//   y:          that + u * (|y| + |residual|)
// x' and w' are the operands after the compute kind's rounding. M = sum_k |x'·w'|; for kQ8
// sum_k |x'| * (|scale part of w'| + |minimum part|), because the two are summed apart and may cancel. m is
// the additions on the longest path: K + 2 for kF32 and kBF16, 3 * (K / 32) + 4 for kQ8 (a block's integer
// sum is exact; its conversion, scales, minimum and addition round), 3 * (K / 128) + 5 for kF8 (a block's
// sum has its error in e; both scales' product, its product with the sum, the addition and w' round). The
// term of 2^-126 lets a unit flush subnormal operands and results.
//   e = 132 * 2^-b * M + 2^-126 * 2^18 K,    b = Backend::e4m3_sum_bits()
// In a block Hopper's tensor cores take four steps of 32 products, and in each shift the 32 and the sum so
// far to the largest of them, keep b fraction bits of each and cut off the rest (DeepSeek-V3 Technical
// Report, section 3.3.2): 33 addends in each of 4 steps lose at most 2^-b of the largest, which is no more
// than the block's part of M. Sums in F32 (b = 23) are well within the same. The last term is for scales
// whose product is below the least normal number: products of E4M3 are at most 448^2 < 2^18. y may alias
// residual exactly; nothing else overlaps.
//
// What stands before and behind a product may be part of the call, with the very bits of the ops apart (where
// a chip is not Backend::batch_invariant(): within their bounds):
//   norm:   x is what AddRmsNorm without a residual makes of it.
//   gated:  y[t, f] = activation(z[t, f]) * z[t, F + f] as GatedActivation has it, with N = 2F and
//           z[t, n] = sum_k x[t, k] * W[n, k] + bias[n].
struct Linear {
  Tensor x;                                   // F32 [T, K], rows contiguous
  RmsNorm norm;                               // gamma: F32 [K] or absent
  const Weight* weight = nullptr;             // [N, K], one expert
  Tensor bias;                                // F32 [N] or absent
  Tensor residual;                            // F32 [T, N], rows contiguous, or absent; absent where gated
  Activation activation = Activation::kNone;  // of GatedActivation's where gated
  bool gated = false;
  float soft_cap = 0.0f;  // of kSoftCap, > 0
  Compute compute = Compute::kF32;
  Tensor y;          // F32 [T, N], or [T, F] where gated, rows contiguous
  Tensor workspace;  // U8 [>= Backend::workspace_bytes(*this)], 64-byte aligned; absent where that is 0

  void check() const;
  double flops() const;
  double bytes() const;
};

// Mixture of experts: rows of x are sorted by expert; counts[e] of them belong to expert e.
// y[t, n] = sum_k x[t, k] * W[e(t), n, k]. Order and bound as Linear's; gated as there.
struct GroupedLinear {
  Tensor x;                        // F32 [T', K], rows contiguous
  const Weight* weight = nullptr;  // [E, N, K]
  Tensor counts;                   // I32 [E], each >= 0, their sum T': the producer's duty
  Compute compute = Compute::kF32;
  bool gated = false;
  Activation activation = Activation::kNone;  // of GatedActivation's where gated, else none
  Tensor y;                                   // F32 [T', N], or [T', F] where gated, rows contiguous
  Tensor workspace;

  void check() const;
  double flops() const;
  double bytes() const;  // counts every expert's weight once
};

// Gradients of Linear without activation (and of its residual, which is dy itself):
//   dx[t, k] = sum_n dy[t, n] * W[n, k]      (+ dx as it was, with add_dx)
//   dw[n, k] += sum_t dy[t, n] * x[t, k];    dbias[n] += sum_t dy[t, n]
// The rounding of the forward pass's operands is passed straight through. Sums are F32; dx of a row depends
// on that row alone. dw and dbias are canonical: row-major, as the file has the weight.
//   kF32: W is dequantized to F32 exactly as for kF32, whatever the compute kind of the forward pass (a
//     quantized base is read straight through: QLoRA, Dettmers et al. 2023), dy and x are as given. In
//     ascending order of n and of t, beginning with what was there.
//   kBF16, of BF16 weights alone: dy and x are rounded to BF16 (nearest even) for the two products, whose
//     terms then are exact. In an order that N, K and the chip decide, of dw also T; what was there is added
//     first or last.
//   kF8, of F8_128 weights with square scales alone (Weight::square_scales): as DeepSeek-V3 Technical Report,
//     section 3.3, has it, all operands in E4M3. dy and x are rounded as kF8 rounds activations, in other
//     blocks: for dx each row of dy in blocks of 128 of a segment's n, from its first on; for dw each column
//     of dy and x in blocks of 128 tokens, from the first on (of the expert). A segment's and an expert's
//     last block may have fewer. W is as it is. Blocks' sums, scales and their order as in the forward pass,
//     or as kBF16's with the operands dequantized to F32.
//   dbias is the same in all: dy as given, t ascending, or runs of t and then their sums.
// Bounds, with gamma_m and u as above, dy and x as the compute kind rounds them:
//   dx:     gamma_m * (sum_n |dy W| + |dx before|) + 2^-126 * (m + sum_n |dy| + sum_n |W|) + (for kF8) e
//   dw:     gamma_m * (sum_t |dy x| + |dw before|) + 2^-126 * (m + sum_t |dy| + sum_t |x|) + (for kF8) e
//   dbias:  gamma_(T + 2) * (sum_t |dy| + |dbias before|) + 2^-126 * (T + 2)
// m is n + 2, in kF8 n + 4, where n is N of dx and T of dw: with operands dequantized both round once, and
// their product; with blocks' sums, whose error is in e, the scales' product and its product with the sum do.
// e is Linear's with n for K and M = sum_n |dy W| or sum_t |dy x|.
// Without any of dx, dw and dbias there is nothing to do.
struct LinearBackward {
  Tensor dy;                       // F32 [T, N], rows contiguous
  Tensor x;                        // F32 [T, K], rows contiguous; absent without dw
  const Weight* weight = nullptr;  // [N, K], one expert
  Tensor dx;                       // F32 [T, K], rows contiguous, or absent
  bool add_dx = false;
  Tensor dw;                        // F32 [N, K], dense, or absent
  Tensor dbias;                     // F32 [N] or absent; no result overlaps anything
  Compute compute = Compute::kF32;  // or kBF16, or kF8
  Tensor workspace;                 // U8 [>= Backend::workspace_bytes(*this)]

  void check() const;
  double flops() const;
  double bytes() const;
};

// Gradients of GroupedLinear: LinearBackward's, expert by expert over the rows that are its own.
//   dx[t, k] = sum_n dy[t, n] * W[e(t), n, k]      (+ dx as it was, with add_dx)
//   dw[e, n, k] += sum_t dy[t, n] * x[t, k], over the rows t of expert e: one without rows stays as it was
// Operands are rounded, sums ordered and bounded as LinearBackward's, with T the rows of the expert.
struct GroupedLinearBackward {
  Tensor dy;                       // F32 [T', N], rows contiguous
  Tensor x;                        // F32 [T', K], rows contiguous; absent without dw
  const Weight* weight = nullptr;  // [E, N, K]
  Tensor counts;                   // I32 [E], each >= 0, their sum T': the producer's duty
  Tensor dx;                       // F32 [T', K], rows contiguous, or absent
  bool add_dx = false;
  Tensor dw;                        // F32 [E, N, K], dense, or absent; no result overlaps anything
  Compute compute = Compute::kF32;  // or kBF16, or kF8
  Tensor workspace;                 // U8 [>= Backend::workspace_bytes(*this)]

  void check() const;
  double flops() const;
  double bytes() const;  // counts every expert's weight once
};

}  // namespace qiao
