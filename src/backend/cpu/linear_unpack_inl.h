// Unpacking of every block format to the shared form (linear_kernels.h), in loops over 16 or 64 lanes that
// the compiler turns into the instruction set of the including file. Included inside an anonymous namespace
// of one linear_<isa>.cc each, so that no linker mixes two sets' code. Unpacking costs about one cycle for
// each 64 quants and is paid once for all rows of x.

using UnpackQuants = void (*)(const std::byte*, int64_t, uint8_t*);
using UnpackScales = void (*)(const std::byte*, int64_t, int64_t, float*);

inline void half16(const uint8_t* from, float* to) {
#if defined(__AVX512F__)
  _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__F16C__)
  for (int i = 0; i < 16; i += 8) {
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i))));
  }
#else
  for (int i = 0; i < 16; ++i) {
    uint16_t half;
    __builtin_memcpy(&half, from + 2 * i, 2);
    to[i] = f16_to_float(half);
  }
#endif
}

struct Words {
  uint32_t lane[16];
};
inline Words words16(const uint8_t* from) {
  Words words;
  __builtin_memcpy(&words, from, sizeof words);
  return words;
}

// to[i] = table[from[i]], from < 16, 64 bytes.
inline void look_up64(const uint8_t* table, const uint8_t* from, uint8_t* to) {
#if defined(__AVX512BW__)
  const __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  _mm512_storeu_si512(to, _mm512_shuffle_epi8(t, _mm512_loadu_si512(from)));
#elif defined(__AVX2__)
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  for (int i = 0; i < 64; i += 32) {
    const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_shuffle_epi8(t, index));
  }
#else
  for (int i = 0; i < 64; ++i) to[i] = table[from[i]];
#endif
}

// The table's values, 128 or 16 added (FormatForm::offset_shift).
alignas(16) constexpr uint8_t kTableNl[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                              129, 141, 153, 166, 181, 197, 217, 241};
alignas(16) constexpr uint8_t kTableFp4[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

inline const uint8_t* bytes_of(const std::byte* chunk) { return reinterpret_cast<const uint8_t*>(chunk); }

// ---- quants ----
// A format's struct unpacks kUnit elements of a chunk at a time: unit(chunk, elements of the chunk, first
// element, to). Up to kPackedRows rows of x, multiplying each unit at once is faster than unpacking a chunk
// first (measured on Zen 4).

// `run` bytes of low nibbles, then as many of high ones.
inline void split_nibbles(const uint8_t* __restrict from, int run, uint8_t* __restrict to) {
  for (int i = 0; i < run; ++i) {
    const uint8_t byte = from[i];
    to[i] = byte & 15;
    to[run + i] = byte >> 4;
  }
}

struct Nibbles32 {
  static constexpr int kUnit = 32, kPackedRows = 4;
  static void unit(const uint8_t* __restrict chunk, int64_t, int64_t k, uint8_t* __restrict to) {
    split_nibbles(chunk + k * 8, 256, to);
  }
};

template <const uint8_t* table>
struct Table32 {
  static constexpr int kUnit = 32, kPackedRows = 4;
  static void unit(const uint8_t* __restrict chunk, int64_t, int64_t k, uint8_t* __restrict to) {
    split_nibbles(chunk + k * 8, 256, to);
    for (int i = 0; i < 512; i += 64) look_up64(table, to + i, to + i);
  }
};

struct Five32 {
  static constexpr int kUnit = 32, kPackedRows = 2;
  static void unit(const uint8_t* __restrict chunk, int64_t elements, int64_t k, uint8_t* __restrict to) {
    const uint8_t* p = chunk + k * 8;
    const uint8_t* high = chunk + elements * 8 + k * 2;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      for (int i = 0; i < 64; ++i) {
        const uint8_t byte = p[v * 64 + i];
        to[v * 64 + i] = static_cast<uint8_t>((byte & 15) | ((high[i] >> v & 1) << 4));
        to[256 + v * 64 + i] = static_cast<uint8_t>((byte >> 4) | ((high[i] >> (v + 4) & 1) << 4));
      }
    }
  }
};

struct Bytes32 {
  static constexpr int kUnit = 32, kPackedRows = 2;
};

struct FourK {
  static constexpr int kUnit = 64, kPackedRows = 4;
  static void unit(const uint8_t* __restrict chunk, int64_t, int64_t k, uint8_t* __restrict to) {
    split_nibbles(chunk + k * 8, 512, to);
  }
};

struct FiveK {
  static constexpr int kUnit = 256, kPackedRows = 2;
  static void unit(const uint8_t* __restrict chunk, int64_t elements, int64_t k, uint8_t* __restrict to) {
    const uint8_t* p = chunk + k * 8;
    const uint8_t* high = chunk + elements * 8 + k * 2;
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m, p += 512, to += 1024) {
      for (int i = 0; i < 512; ++i) {
        const uint8_t byte = p[i];
        to[i] = static_cast<uint8_t>((byte & 15) | ((high[i] >> (2 * m) & 1) << 4));
        to[512 + i] = static_cast<uint8_t>((byte >> 4) | ((high[i] >> (2 * m + 1) & 1) << 4));
      }
    }
  }
};

struct SixK {
  static constexpr int kUnit = 128, kPackedRows = 2;
  static void unit(const uint8_t* __restrict chunk, int64_t elements, int64_t k, uint8_t* __restrict to) {
    const uint8_t* p = chunk + k * 8;
    const uint8_t* high = chunk + elements * 8 + k * 4;
    for (int i = 0; i < 512; ++i) {
      const uint8_t a = p[i], b = p[512 + i], h = high[i];
      to[i] = static_cast<uint8_t>((a & 15) | ((h & 3) << 4));
      to[512 + i] = static_cast<uint8_t>((b & 15) | ((h & 12) << 2));
      to[1024 + i] = static_cast<uint8_t>((a >> 4) | (h & 48));
      to[1536 + i] = static_cast<uint8_t>((b >> 4) | ((h & 192) >> 2));
    }
  }
};

struct TwoK {
  static constexpr int kUnit = 128, kPackedRows = 2;
  static void unit(const uint8_t* __restrict chunk, int64_t, int64_t k, uint8_t* __restrict to) {
    const uint8_t* p = chunk + k * 4;
    for (int i = 0; i < 512; ++i) {
      const uint8_t byte = p[i];
      to[i] = byte & 3;
      to[512 + i] = (byte >> 2) & 3;
      to[1024 + i] = (byte >> 4) & 3;
      to[1536 + i] = byte >> 6;
    }
  }
};

struct ThreeK {
  static constexpr int kUnit = 256, kPackedRows = 2;
  static void unit(const uint8_t* __restrict chunk, int64_t elements, int64_t k, uint8_t* __restrict to) {
    const uint8_t* p = chunk + k * 4;
    const uint8_t* high = chunk + elements * 4 + k * 2;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, p += 512, to += 2048) {
      for (int i = 0; i < 512; ++i) {
        const uint8_t byte = p[i], h = static_cast<uint8_t>(high[i] >> (4 * half));
        to[i] = static_cast<uint8_t>((byte & 3) | ((h & 1) << 2));
        to[512 + i] = static_cast<uint8_t>((byte >> 2 & 3) | ((h & 2) << 1));
        to[1024 + i] = static_cast<uint8_t>((byte >> 4 & 3) | (h & 4));
        to[1536 + i] = static_cast<uint8_t>((byte >> 6) | (h >> 1 & 4));
      }
    }
  }
};

template <class Format>
void unpack_quants(const std::byte* chunk, int64_t elements, uint8_t* to) {
  for (int64_t k = 0; k < elements; k += Format::kUnit) {
    Format::unit(bytes_of(chunk), elements, k, to + k * 16);
  }
}

// ---- scales ----

#include "backend/cpu/linear_scales_inl.h"

// ---- to F32 ----

template <bool minimum, int count>
void dequantize(const uint8_t* __restrict quants, const float* __restrict scales, int64_t stride,
                int64_t tiles, int offset, float* __restrict out) {
  for (int64_t b = 0; b < tiles; ++b, scales += stride) {
    for (int j = 0; j < 8; ++j, quants += 64, out += 64) {
      const float* scale = scales + (count == 2 && j >= 4 ? 16 : 0);
      const Words words = words16(quants);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        for (int r = 0; r < 16; ++r) {
          const int32_t quant = static_cast<int32_t>(words.lane[r] >> (8 * i) & 255) - offset;
          const float value = scale[r] * static_cast<float>(quant);
          out[i * 16 + r] = minimum ? value + scale[count * 16 + r] : value;
        }
      }
    }
  }
}

void f16_to_f32(const std::byte* chunk, int64_t elements, float* out) {
  for (int64_t k = 0; k < elements; ++k) half16(bytes_of(chunk) + k * 32, out + k * 16);
}

void bf16_to_f32(const std::byte* chunk, int64_t elements, float* out) {
  for (int64_t k = 0; k < elements; k += 2, chunk += 64) {
    const Words words = words16(bytes_of(chunk));
    Words low, high;
    for (int r = 0; r < 16; ++r) {
      low.lane[r] = words.lane[r] << 16;
      high.lane[r] = words.lane[r] & 0xffff0000u;
    }
    __builtin_memcpy(out + k * 16, &low, sizeof low);
    if (k + 1 < elements) __builtin_memcpy(out + k * 16 + 16, &high, sizeof high);
  }
}

// Four numbers of each of 16 rows a step; those below 2^-6 are whole multiples of 2^-9.
void f8_to_f32(const std::byte* codes, const float* scales, int64_t elements, float* __restrict out) {
  for (int64_t k = 0; k < elements; k += 4, codes += 64, out += 64) {
    const Words words = words16(bytes_of(codes));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      for (int r = 0; r < 16; ++r) {
        const uint32_t byte = words.lane[r] >> (8 * i);
        const uint32_t magnitude = byte & 127;
        const float small = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f;
        uint32_t bits;
        __builtin_memcpy(&bits, &small, sizeof small);
        bits = magnitude < 8 ? bits : (magnitude << 20) + 0x3c000000u;
        bits = magnitude == 127 ? 0x7fc00000u : bits;
        bits |= (byte & 128) << 24;
        __builtin_memcpy(out + i * 16 + r, &bits, sizeof bits);
      }
    }
    if (scales == nullptr) continue;
    float factors[16];
    __builtin_memcpy(factors, scales + k / kF8Block * 16, sizeof factors);
    for (int i = 0; i < 64; ++i) out[i] *= factors[i % 16];
  }
}

// ---- activations ----

// The magnitudes' bits order as the magnitudes do, NaN above all, so a NaN reaches the scale and the output.
// Adding and taking away 1.5 * 2^23 rounds half to even; quants are held to +-127, that NaN and infinities
// stay whole numbers.
void quantize(const float* x, int64_t columns, int8_t* quants, TileMeta* meta) {
  for (int64_t k = 0; k < columns; k += 32, x += 32, quants += 32, ++meta) {
    uint32_t bits[32];
    __builtin_memcpy(bits, x, sizeof bits);
    int32_t most = 0;
    for (int i = 0; i < 32; ++i) {
      const auto magnitude = static_cast<int32_t>(bits[i] & 0x7fffffffu);
      most = magnitude > most ? magnitude : most;
    }
    float maximum;
    __builtin_memcpy(&maximum, &most, sizeof most);
    const bool zero = maximum < kQ8Smallest;
    const float inverse = zero ? 0.0f : 127.0f / maximum;
    int32_t rounded[32];
    for (int i = 0; i < 32; ++i) {
      float v = x[i] * inverse;
      v = v > -127.0f ? v : -127.0f;
      v = v < 127.0f ? v : 127.0f;
      v += 12582912.0f;
      __builtin_memcpy(&rounded[i], &v, sizeof v);
      rounded[i] -= 0x4b400000;
    }
    int32_t low = 0, high = 0;
    for (int i = 0; i < 16; ++i) low += rounded[i];
    for (int i = 16; i < 32; ++i) high += rounded[i];
    for (int i = 0; i < 32; ++i) quants[i] = static_cast<int8_t>(rounded[i]);
    meta->scale = zero ? 0.0f : maximum / 127.0f;
    meta->scaled_sum = meta->scale * static_cast<float>(low + high);
    meta->minus_sum = -(low + high);
    meta->minus_sum_low = -low;
  }
}

void quantize_f8(const float* x, int64_t columns, float* numbers, float* scales) {
  for (int64_t k = 0; k < columns; k += kF8Block, x += kF8Block, numbers += kF8Block, ++scales) {
    int32_t most = 0;
    for (int i = 0; i < kF8Block; ++i) {
      const int32_t magnitude = magnitude_bits(x[i]);
      most = magnitude > most ? magnitude : most;
    }
    const BlockScale block = e4m3_scale(most);
    *scales = block.scale;
    for (int i = 0; i < kF8Block; ++i) numbers[i] = nearest_e4m3(x[i] * block.inverse);
  }
}

void add_f8_block(const AddF8Block& a) {
  for (int64_t t = 0; t < a.rows; ++t) {
    const float x_scale = a.x_scales[t * a.x_stride];
    for (int g = 0; g < a.groups; ++g) {
      const float* __restrict scales = a.scales[static_cast<size_t>(g)];
      const float* __restrict blocks = a.blocks + t * kPair * 16 + g * 16;
      float* __restrict sums = a.sums + t * kPair * 16 + g * 16;
      for (int r = 0; r < 16; ++r) sums[r] = __builtin_fmaf(blocks[r], scales[r] * x_scale, sums[r]);
    }
  }
}

inline uint32_t rounded_to_bf16(float value) {  // in the high half
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bits | 0x400000u) & 0xffff0000u : rounded;
}

void round_bf16(const float* x, int64_t columns, float* rounded) {
  for (int64_t k = 0; k < columns; ++k) {
    const uint32_t bits = rounded_to_bf16(x[k]);
    __builtin_memcpy(rounded + k, &bits, sizeof bits);
  }
}

inline void fill_unpack(LinearKernels& table) {
  const auto set = [&](DType dtype, UnpackQuants quants, UnpackScales scales) {
    table.quants[static_cast<size_t>(dtype)] = quants;
    table.scales[static_cast<size_t>(dtype)] = scales;
  };
  set(DType::kQ4_0, unpack_quants<Nibbles32>, scales_half<16>);
  set(DType::kQ4_1, unpack_quants<Nibbles32>, scales_half_minimum<16>);
  set(DType::kQ5_0, unpack_quants<Five32>, scales_half<20>);
  set(DType::kQ5_1, unpack_quants<Five32>, scales_half_minimum<20>);
  set(DType::kQ8_0, nullptr, scales_half<32>);
  set(DType::kQ2_K, unpack_quants<TwoK>, scales_q2_k);
  set(DType::kQ3_K, unpack_quants<ThreeK>, scales_q3_k);
  set(DType::kQ4_K, unpack_quants<FourK>, scales_k4<128>);
  set(DType::kQ5_K, unpack_quants<FiveK>, scales_k4<160>);
  set(DType::kQ6_K, unpack_quants<SixK>, scales_q6_k);
  set(DType::kIQ4_NL, unpack_quants<Table32<kTableNl>>, scales_half<16>);
  set(DType::kIQ4_XS, unpack_quants<Table32<kTableNl>>, scales_iq4_xs);
  set(DType::kMXFP4, unpack_quants<Table32<kTableFp4>>, scales_mxfp4);
  table.dequantize = {dequantize<false, 1>, dequantize<true, 1>, dequantize<false, 2>, dequantize<true, 2>};
  table.f16_to_f32 = f16_to_f32;
  table.bf16_to_f32 = bf16_to_f32;
  table.quantize = quantize;
  table.round_bf16 = round_bf16;
  table.quantize_f8 = quantize_f8;
  table.f8_to_f32 = f8_to_f32;
  table.add_f8_block = add_f8_block;
}
