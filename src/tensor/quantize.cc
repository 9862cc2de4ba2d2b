#include "tensor/quantize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "tensor/floats.h"
#include "tensor/half.h"

namespace qiao {
namespace {

constexpr int kSmall = 32, kSuper = 256;  // elements of a block of the plain formats, and of the K formats

void put_half(float value, std::byte* to) {
  const uint16_t half = float_to_f16(value);
  std::memcpy(to, &half, sizeof(half));
}
float get_half(const std::byte* from) {
  uint16_t half = 0;
  std::memcpy(&half, from, sizeof(half));
  return f16_to_float(half);
}
std::byte as_byte(int value) { return static_cast<std::byte>(value); }
int nearest(float value) { return static_cast<int>(std::nearbyint(value)); }  // halves to even

// The value that is farthest from 0, with its sign.
float extreme(const float* x, int count) {
  float most = 0;
  for (int i = 0; i < count; ++i)
    if (std::abs(x[i]) > std::abs(most)) most = x[i];
  return most;
}

// Q4_0 and Q5_0: the extreme becomes -levels/2 times the scale, so that it is held exactly but for the
// scale's rounding. `bits` 4 or 5; the fifth bits stand in a word of their own.
void quantize_signed(const float* x, int bits, std::byte* to) {
  const int half = 1 << (bits - 1);
  const float scale = extreme(x, kSmall) / static_cast<float>(-half);
  const float inverse = scale != 0 ? 1.0f / scale : 0.0f;
  put_half(scale, to);
  std::byte* quants = to + (bits == 4 ? 2 : 6);
  uint32_t fifth = 0;
  for (int i = 0; i < kSmall / 2; ++i) {
    int pair[2];
    for (int part = 0; part < 2; ++part) {
      const int at = i + part * kSmall / 2;
      const float shifted = x[at] * inverse + (static_cast<float>(half) + 0.5f);
      pair[part] = std::min(2 * half - 1, static_cast<int>(static_cast<int8_t>(shifted)));
      fifth |= static_cast<uint32_t>(pair[part] >> 4 & 1) << at;
    }
    quants[i] = as_byte((pair[0] & 15) | (pair[1] & 15) << 4);
  }
  if (bits == 5) std::memcpy(to + 2, &fifth, sizeof(fifth));
}

// From the least value up, in 31 steps.
void quantize_q5_1(const float* x, std::byte* to) {
  const auto [low, high] = std::minmax_element(x, x + kSmall);
  const float scale = (*high - *low) / 31.0f;
  const float inverse = scale != 0 ? 1.0f / scale : 0.0f;
  put_half(scale, to);
  put_half(*low, to + 2);
  uint32_t fifth = 0;
  for (int i = 0; i < kSmall / 2; ++i) {
    int pair[2];
    for (int part = 0; part < 2; ++part) {
      const int at = i + part * kSmall / 2;
      const float level = (x[at] - *low) * inverse + 0.5f;  // not negative
      pair[part] = static_cast<int>(level);
      fifth |= static_cast<uint32_t>(pair[part] >> 4 & 1) << at;
    }
    to[8 + i] = as_byte((pair[0] & 15) | (pair[1] & 15) << 4);
  }
  std::memcpy(to + 4, &fifth, sizeof(fifth));
}

void quantize_q8_0(const float* x, std::byte* to) {
  const float scale = std::abs(extreme(x, kSmall)) / 127.0f;
  const float inverse = scale != 0 ? 1.0f / scale : 0.0f;
  put_half(scale, to);
  for (int i = 0; i < kSmall; ++i) to[2 + i] = as_byte(static_cast<int8_t>(std::round(x[i] * inverse)));
}

// A scale and a minimum of 32 values: x is near scale * level - minimum, levels from 0 to `most`.
struct ScaleAndMinimum {
  float scale = 0, minimum = 0;
};

// Tries steps + 1 scales around the range's own; for the levels of each the weighted least squares give scale
// and minimum, and the best stays. The minimum is never above 0.
ScaleAndMinimum fit_with_minimum(const float* x, const float* weights, int most, float first, float step,
                                 int steps) {
  float low = x[0], high = x[0], sum_w = 0, sum_x = 0;
  for (int i = 0; i < kSmall; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
    sum_w += weights[i];
    sum_x += weights[i] * x[i];
  }
  low = std::min(low, 0.0f);
  if (high == low) return {0, -low};
  const auto level = [&](float inverse, int i) {
    return std::clamp(nearest(inverse * (x[i] - low)), 0, most);
  };
  const float own = static_cast<float>(most) / (high - low);
  float best_scale = 1 / own, best_error = 0;
  for (int i = 0; i < kSmall; ++i) {
    const float difference = best_scale * static_cast<float>(level(own, i)) + low - x[i];
    best_error += weights[i] * difference * difference;
  }
  std::array<int, kSmall> levels;
  for (int trial = 0; trial <= steps; ++trial) {
    const float inverse =
        (first + step * static_cast<float>(trial) + static_cast<float>(most)) / (high - low);
    float sum_l = 0, sum_ll = 0, sum_xl = 0;
    for (int i = 0; i < kSmall; ++i) {
      levels[static_cast<size_t>(i)] = level(inverse, i);
      const auto l = static_cast<float>(levels[static_cast<size_t>(i)]);
      sum_l += weights[i] * l;
      sum_ll += weights[i] * l * l;
      sum_xl += weights[i] * l * x[i];
    }
    const float determinant = sum_w * sum_ll - sum_l * sum_l;
    if (!(determinant > 0)) continue;
    float scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    float minimum = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
    if (minimum > 0) {
      minimum = 0;
      scale = sum_xl / sum_ll;
    }
    float error = 0;
    for (int i = 0; i < kSmall; ++i) {
      const float difference = scale * static_cast<float>(levels[static_cast<size_t>(i)]) + minimum - x[i];
      error += weights[i] * difference * difference;
    }
    if (error < best_error) {
      best_error = error;
      best_scale = scale;
      low = minimum;  // which the trials that follow begin from
    }
  }
  return {best_scale, -low};
}

// Q4_K and Q5_K: eight groups of 32, whose scales and minima are 6-bit shares of two halves.
void quantize_k_with_minimum(const float* x, int bits, std::byte* to) {
  const int most = (1 << bits) - 1;
  std::array<ScaleAndMinimum, 8> fits;
  float most_scale = 0, most_minimum = 0;
  for (size_t group = 0; group < fits.size(); ++group) {
    const float* from = x + group * kSmall;
    float squares = 0;
    for (int i = 0; i < kSmall; ++i) squares += from[i] * from[i];
    const float usual = std::sqrt(squares / kSmall);
    std::array<float, kSmall> weights;
    for (int i = 0; i < kSmall; ++i) weights[static_cast<size_t>(i)] = usual + std::abs(from[i]);
    fits[group] = bits == 4 ? fit_with_minimum(from, weights.data(), most, -1.0f, 0.1f, 20)
                            : fit_with_minimum(from, weights.data(), most, -0.5f, 0.1f, 15);
    most_scale = std::max(most_scale, fits[group].scale);
    most_minimum = std::max(most_minimum, fits[group].minimum);
  }
  const float inverse_scale = most_scale > 0 ? 63.0f / most_scale : 0.0f,
              inverse_minimum = most_minimum > 0 ? 63.0f / most_minimum : 0.0f;
  put_half(most_scale / 63.0f, to);
  put_half(most_minimum / 63.0f, to + 2);
  const float d = get_half(to), dmin = get_half(to + 2);
  std::byte* packed = to + 4;  // 12 bytes of the 6-bit shares
  std::fill_n(packed, 12, std::byte{0});
  std::array<int, kSuper> levels{};
  for (int group = 0; group < 8; ++group) {
    const ScaleAndMinimum& fit = fits[static_cast<size_t>(group)];
    const int s = std::min(63, nearest(inverse_scale * fit.scale) & 255),
              m = std::min(63, nearest(inverse_minimum * fit.minimum) & 255);
    if (group < 4) {
      packed[group] = as_byte(s);
      packed[group + 4] = as_byte(m);
    } else {
      packed[group + 4] = as_byte((s & 15) | (m & 15) << 4);
      packed[group - 4] |= as_byte(s >> 4 << 6);
      packed[group] |= as_byte(m >> 4 << 6);
    }
    const float scale = d * static_cast<float>(s), minimum = dmin * static_cast<float>(m);
    for (int i = group * kSmall; i < (group + 1) * kSmall; ++i) {
      // Without a scale what the levels are is all one.
      levels[static_cast<size_t>(i)] =
          scale == 0 ? 0 : std::clamp(nearest((x[i] + minimum) / scale), 0, most);
    }
  }
  std::byte *high = to + 16, *low = bits == 4 ? to + 16 : to + 48;
  if (bits == 5) std::fill_n(high, kSmall, std::byte{0});
  for (int pair = 0; pair < 4; ++pair) {  // two groups in the nibbles of 32 bytes
    for (int i = 0; i < kSmall; ++i) {
      const size_t at = static_cast<size_t>(pair) * 64 + static_cast<size_t>(i);
      const int first = levels[at], second = levels[at + 32];
      low[pair * kSmall + i] = as_byte((first & 15) | (second & 15) << 4);
      if (bits == 5) high[i] |= as_byte((first >> 4) << (2 * pair) | (second >> 4) << (2 * pair + 1));
    }
  }
}

// The scale of 16 values with levels from -32 to 31, each value's error weighing as its square: of 19 scales
// around the extreme's own that with the least error.
float fit_symmetric(const float* x) {
  constexpr int kCount = 16, kMost = 32;
  const float farthest = extreme(x, kCount);
  if (std::abs(farthest) < 1e-15f) return 0;
  float best = 0, best_scale = 0;
  for (int trial = 0; trial <= 18; ++trial) {
    const int step = trial == 0 ? 0 : trial <= 9 ? trial - 10 : trial - 9;  // the extreme's own first
    const float inverse = -(static_cast<float>(kMost) + 0.1f * static_cast<float>(step)) / farthest;
    float sum_xl = 0, sum_ll = 0;
    for (int i = 0; i < kCount; ++i) {
      const auto level = static_cast<float>(std::clamp(nearest(inverse * x[i]), -kMost, kMost - 1));
      const float weight = x[i] * x[i];
      sum_xl += weight * x[i] * level;
      sum_ll += weight * level * level;
    }
    if (trial == 0) {
      best_scale = sum_ll != 0 ? sum_xl / sum_ll : 0.0f;
      best = best_scale * sum_xl;
    } else if (sum_ll > 0 && sum_xl * sum_xl > best * sum_ll) {
      best_scale = sum_xl / sum_ll;
      best = best_scale * sum_xl;
    }
  }
  return best_scale;
}

void quantize_q6_k(const float* x, std::byte* to) {
  constexpr int kGroups = 16, kQuants = 0, kHigh = 128, kScales = 192, kScale = 208;
  std::array<float, kGroups> scales;
  for (int group = 0; group < kGroups; ++group)
    scales[static_cast<size_t>(group)] = fit_symmetric(x + 16 * group);
  const float farthest = extreme(scales.data(), kGroups);
  std::fill_n(to, traits(DType::kQ6_K).block_bytes, std::byte{0});
  if (std::abs(farthest) < 1e-15f) return;
  const float inverse = -128.0f / farthest;
  put_half(1 / inverse, to + kScale);
  const float d = get_half(to + kScale);
  std::array<int, kSuper> levels{};
  for (int group = 0; group < kGroups; ++group) {
    const int share = std::min(127, nearest(inverse * scales[static_cast<size_t>(group)]));
    to[kScales + group] = as_byte(static_cast<int8_t>(share));
    const float scale = d * static_cast<float>(share);
    for (int i = group * 16; i < (group + 1) * 16; ++i)
      levels[static_cast<size_t>(i)] = scale == 0 ? 32 : std::clamp(nearest(x[i] / scale), -32, 31) + 32;
  }
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 32; ++i) {
      const auto level = [&](int quarter) {
        return levels[static_cast<size_t>(half) * 128 + static_cast<size_t>(quarter) * 32 +
                      static_cast<size_t>(i)];
      };
      to[kQuants + half * 64 + i] = as_byte((level(0) & 15) | (level(2) & 15) << 4);
      to[kQuants + half * 64 + 32 + i] = as_byte((level(1) & 15) | (level(3) & 15) << 4);
      to[kHigh + half * 32 + i] =
          as_byte(level(0) >> 4 | level(1) >> 4 << 2 | level(2) >> 4 << 4 | level(3) >> 4 << 6);
    }
  }
}

}  // namespace

bool can_quantize(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
    case DType::kQ5_0:
    case DType::kQ5_1:
    case DType::kQ8_0:
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K:
      return true;
    default:
      return is_dense_float(dtype);
  }
}

void quantize(std::span<const float> values, DType dtype, std::byte* bytes) {
  QIAO_ASSERT(can_quantize(dtype));
  if (is_dense_float(dtype)) return from_floats(values, dtype, bytes);
  const auto block = static_cast<size_t>(traits(dtype).block_elements);
  QIAO_ASSERT(values.size() % block == 0);
  for (size_t at = 0; at < values.size(); at += block, bytes += traits(dtype).block_bytes) {
    const float* x = values.data() + at;
    switch (dtype) {
      case DType::kQ4_0:
        quantize_signed(x, 4, bytes);
        break;
      case DType::kQ5_0:
        quantize_signed(x, 5, bytes);
        break;
      case DType::kQ5_1:
        quantize_q5_1(x, bytes);
        break;
      case DType::kQ8_0:
        quantize_q8_0(x, bytes);
        break;
      case DType::kQ4_K:
        quantize_k_with_minimum(x, 4, bytes);
        break;
      case DType::kQ5_K:
        quantize_k_with_minimum(x, 5, bytes);
        break;
      default:
        quantize_q6_k(x, bytes);
    }
  }
}

}  // namespace qiao
