// Sixteen-bit floats as types of their own, so that a kernel's loads choose their conversion by type.
#pragma once

#include <cstdint>

namespace qiao::cpu {

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

// Blocks of 32 numbers of eight bits with a scale in F16: a number is worth scale * number, which is exact in
// F32. One after another (GGUF's Q8_0) where they follow a row; sixteen rows side by side, scales first,
// where lanes are rows.
struct Q8 {
  static constexpr int64_t kNumbers = 32;
  static constexpr int64_t kBytes = 34, kGroupBytes = 16 * kBytes;
};

// A number of FP8, four bits of exponent and three of mantissa. A row of keys or values has its scale before
// it, F32; sixteen rows side by side, where lanes are rows, their sixteen.
struct E4m3 {
  uint8_t bits;
  static constexpr int64_t kScaleBytes = sizeof(float);
};

// Sanitizers take minutes to compile the full tiles; results do not depend on a tile's shape.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSmallTiles = true;
#else
inline constexpr bool kSmallTiles = false;
#endif

inline constexpr double kTwoOverPi = 0.63661977236758134308;
inline constexpr double kHalfPiHigh = 1.57079632679489655800;  // and what it lacks:
inline constexpr double kHalfPiLow = 6.12323399573676603587e-17;

}  // namespace qiao::cpu
