// The oracle is the compiler's own _Float16 (IEEE 754 half precision), and for BF16 arithmetic on doubles.
#include "tensor/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

namespace qiao {
namespace {

float oracle_f16_to_float(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, sizeof half);
  return static_cast<float>(half);
}

uint16_t oracle_float_to_f16(float value) {
  const auto half = static_cast<_Float16>(value);
  uint16_t bits = 0;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

TEST(HalfTest, EveryF16BecomesItsFloat) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto half = static_cast<uint16_t>(i);
    const float value = f16_to_float(half);
    const float expected = oracle_f16_to_float(half);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << i;
    } else {
      ASSERT_EQ(bits_of(value), bits_of(expected)) << i;
    }
  }
}

TEST(HalfTest, EveryF16ComesBackFromItsFloat) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto half = static_cast<uint16_t>(i);
    const uint16_t back = float_to_f16(f16_to_float(half));
    if (std::isnan(oracle_f16_to_float(half))) {
      ASSERT_TRUE(std::isnan(oracle_f16_to_float(back))) << i;
      ASSERT_EQ(back & 0x8000u, half & 0x8000u) << i;
    } else {
      ASSERT_EQ(back, half) << i;
    }
  }
}

// Where rounding decides: every F16, halfway to the next, and one float to each side of both.
TEST(HalfTest, RoundsFloatsToF16AsTheHardwareDoes) {
  const auto check = [](float value) {
    ASSERT_EQ(float_to_f16(value), oracle_float_to_f16(value)) << bits_of(value);
  };
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (uint32_t i = 0; i < 0x7c00; ++i) {
    const float here = oracle_f16_to_float(static_cast<uint16_t>(i));
    const float next = i + 1 == 0x7c00 ? 65536.0f : oracle_f16_to_float(static_cast<uint16_t>(i + 1));
    const float halfway = here + (next - here) / 2;
    for (const float base : {here, halfway}) {
      for (const float value : {base, std::nextafter(base, kInfinity), std::nextafter(base, -kInfinity)}) {
        check(value);
        check(-value);
      }
    }
  }
  for (const float value : {kInfinity, -kInfinity, std::numeric_limits<float>::max(), 1e-45f, -1e-45f,
                            65519.0f, 65520.0f, 0x1p-25f, 0x1.000002p-25f}) {
    check(value);
  }
  EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(
      std::isnan(f16_to_float(float_to_f16(std::bit_cast<float>(0x7f800001u)))));  // signaling, low bits
}

TEST(HalfTest, RoundsAnyFloatToF16) {
  std::mt19937 random(5);
  for (int i = 0; i < 2'000'000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(oracle_f16_to_float(float_to_f16(value))));
    } else {
      ASSERT_EQ(float_to_f16(value), oracle_float_to_f16(value)) << bits_of(value);
    }
  }
}

// sign, 8 bits of exponent, 7 of mantissa: in doubles, which hold each value exactly.
double oracle_bf16(uint16_t bits) {
  const int exponent = (bits >> 7) & 0xff;
  const int mantissa = bits & 0x7f;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 0xff) return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  if (exponent == 0) return sign * std::ldexp(mantissa, -133);
  return sign * std::ldexp(128 + mantissa, exponent - 134);
}

TEST(HalfTest, EveryBf16BecomesItsFloatAndComesBack) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const double expected = oracle_bf16(bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(bf16_to_float(bits)));
      ASSERT_TRUE(std::isnan(bf16_to_float(float_to_bf16(bf16_to_float(bits)))));
      continue;
    }
    ASSERT_EQ(static_cast<double>(bf16_to_float(bits)), expected) << i;
    ASSERT_EQ(float_to_bf16(bf16_to_float(bits)), bits) << i;
  }
}

TEST(HalfTest, RoundsFloatsToTheNearestBf16AndTiesToEven) {
  std::mt19937 random(6);
  for (uint32_t i = 0; i < 0x7f80; ++i) {
    for (int k = 0; k < 8; ++k) {
      const uint32_t low = k == 0 ? 0x8000u : k == 1 ? 0x7fffu : k == 2 ? 0x8001u : random() & 0xffffu;
      const float value = std::bit_cast<float>((i << 16) | low);
      const double exact = value;
      const auto down = static_cast<uint16_t>(i), up = static_cast<uint16_t>(i + 1);
      // The value above the largest counts as 2^128 when the nearest is sought.
      const double above = up == 0x7f80 ? std::ldexp(1.0, 128) : oracle_bf16(up);
      const double to_down = exact - oracle_bf16(down), to_up = above - exact;
      const uint16_t expected = to_down < to_up ? down : to_up < to_down ? up : (down % 2 == 0 ? down : up);
      ASSERT_EQ(float_to_bf16(value), expected) << bits_of(value);
      ASSERT_EQ(float_to_bf16(-value), expected | 0x8000u) << bits_of(value);
    }
  }
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0xffffffffu)))));
}

}  // namespace
}  // namespace qiao
