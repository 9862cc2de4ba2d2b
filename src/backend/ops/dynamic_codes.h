// Eight-bit codes of numbers from -1 to 1, fine for large ones and reaching far down (Dettmers et al. 2022,
// "8-bit Optimizers via Block-wise Quantization"): what AdamW's moments of dtype U8 hold.
#pragma once

#include <array>
#include <cstdint>

namespace qiao {

// Numbers under one scale, their largest magnitude.
inline constexpr int64_t kCodeBlock = 256;

// Code c stands for value[c], ascending; x has the code that is the number of boundaries below it.
struct DynamicCodes {
  std::array<float, 256> value;
  std::array<float, 255> boundary;  // (value[c] + value[c + 1]) / 2, in F32

  uint8_t code_of(float x) const;
};

// Decade i of 7 goes from 10^(i - 7) to 10^(i - 6) and is cut into equal pieces, 2^i for each sign, or
// 2^(i + 1) without signs; their middles, 0 and 1 are the values (computed in float64, rounded to F32).
const DynamicCodes& signed_codes();    // of first moments: value[127] is 0
const DynamicCodes& unsigned_codes();  // of second moments: value[0] is 0

}  // namespace qiao
