// What the argument structs of ops share.
#pragma once

#include <cstdint>

#include "backend/weight.h"
#include "tensor/tensor.h"

namespace qiao {

// How a product of activations and weights is computed. Follows from the file's dtype and the user's flags,
// never from timing (docs/design.md, "Compute policy").
enum class Compute : uint8_t {
  // Weights are dequantized exactly to F32 and multiplied with F32 activations, accumulated in F32.
  kF32,
  // Activations are rounded to BF16 (nearest even), F32 accumulation. BF16 weights only, as they are.
  kBF16,
  // Activations are quantized for each row in blocks of kQ8Block: scale = max|x| / 127 (F32 division),
  // inverse = 127 / max|x|, both 0 where max|x| < kQ8Smallest (the inverse would overflow), and
  // q = round_half_even(x * inverse), all in F32. Integer dot products inside a block are exact, blocks
  // accumulate in F32. Weights of a block format only, but not F8_128.
  kQ8,
  // Activations are quantized for each row in blocks of kF8Block: scale = max|x| / 448 (F32 division),
  // inverse = 448 / max|x|, both 0 where max|x| < kQ8Smallest, and q = the number of E4M3 nearest to
  // x * inverse (half to even). Products inside a block are exact and added up without the scales, in F32 or
  // as Hopper's tensor cores do (Backend::e4m3_sum_bits); blocks, times both scales, accumulate in F32.
  // A NaN or an infinity among a block's activations makes its part of the sum NaN. Weights of F8_128 only.
  kF8,
};

// What the way back of a product is computed in: kBF16 where that is, else kF32 (an op's own comment says
// how).
inline Compute gradient_compute(Compute forward) {
  return forward == Compute::kBF16 ? Compute::kBF16 : Compute::kF32;
}
// The same of a weight whose way back may be in E4M3.
inline Compute gradient_compute(Compute forward, const Weight& weight) {
  return forward == Compute::kF8 && weight.square_scales() ? Compute::kF8 : gradient_compute(forward);
}

inline constexpr int64_t kQ8Block = 32;  // and kF8Block, of tensor/dtype.h
inline constexpr float kQ8Smallest = 0x1p-100f;

// y = f(x); for gated kinds y = f(gate) * up.
enum class Activation : uint8_t {
  kNone,
  kSilu,      // x / (1 + exp(-x))
  kGelu,      // x * Phi(x), with erf
  kGeluTanh,  // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  kSoftCap,   // c * tanh(x / c)
};

}  // namespace qiao
