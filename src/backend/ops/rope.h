#pragma once

#include "backend/ops/common.h"

namespace qiao {

// Rotary position embedding (Su et al. 2021), in place on the first R = 2 * len(inverse_frequencies) elements
// of each head; the rest stay. angle(t, i) = positions[t] * inverse_frequencies[i], an F32 product as in
// Transformers; cosine and sine of it are correct to 2 u and multiplied by `scale` (YaRN's and LongRoPE's
// attention factor).
//   kHalf:        pairs (i, i + R/2)    (Hugging Face, "NeoX")
//   kInterleaved: pairs (2i, 2i + 1)    (the original, "NORM" in GGUF)
// Every frequency scaling (linear, Llama 3, YaRN, LongRoPE, dynamic) is in the table: models make it.
// With `inverse` the angles' signs change and `scale` stays: that is the gradient's way back.
// Bound: 6 u * scale * (|a| + |b|) for each pair.
struct Rope {
  enum class Layout : uint8_t { kHalf, kInterleaved };
  Tensor q;                    // F32 [T, H, D], last dimension contiguous
  Tensor k;                    // F32 [T, G, D], last dimension contiguous, or absent
  Tensor positions;            // I32 [T]
  Tensor inverse_frequencies;  // F32 [R / 2]
  Layout layout = Layout::kHalf;
  float scale = 1.0f;
  bool inverse = false;

  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
