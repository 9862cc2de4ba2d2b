// How numbers become a row of the pages, which kv_write.cu and rope_kv_write.cu share: a thread has kCount
// elements one behind the other, 4 or 8, and stores them at once.
#pragma once

#include "backend/cuda/kernel.h"
#include "backend/cuda/kv_pages.h"
#include "backend/ops/attention.h"
#include "tensor/half.h"

namespace qiao::cuda {

// Where a slot's key or value of a head lies, and of F8_E4M3 its scale.
struct KvPlace {
  unsigned char* row;
  float* scale;
};
__device__ inline KvPlace kv_place(const KvLayout& pages, int slot, int head, bool value) {
  unsigned char* const at =
      pages.memory + slot / pages.page_tokens * pages.page_bytes + head * pages.head_bytes;
  const int place = (value ? pages.page_tokens : 0) + slot % pages.page_tokens;
  return {at + place * pages.row_bytes, reinterpret_cast<float*>(at + pages.scales_offset()) + place};
}

__device__ inline unsigned pack_f16(float low, float high) {
  return __half_as_ushort(__float2half_rn(low)) |
         static_cast<unsigned>(__half_as_ushort(__float2half_rn(high))) << 16;
}
__device__ inline unsigned pack_bf16(float low, float high) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
         static_cast<unsigned>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
}

// One, two or four words at a multiple of as many.
template <int kWords>
__device__ void store_words(unsigned char* to, const unsigned (&words)[kWords]) {
  if constexpr (kWords == 4) {
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  } else if constexpr (kWords == 2) {
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  } else {
    *reinterpret_cast<unsigned*>(to) = words[0];
  }
}

// Elements from `at` on, to pages of F32, F16 or BF16.
template <DType kDType, int kCount>
__device__ void store_kv(const float (&x)[kCount], int at, unsigned char* row) {
  if constexpr (kDType == DType::kF32) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      *reinterpret_cast<float4*>(row + 4 * (at + i)) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
    }
  } else {
    unsigned words[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      words[i] = kDType == DType::kF16 ? pack_f16(x[2 * i], x[2 * i + 1]) : pack_bf16(x[2 * i], x[2 * i + 1]);
    }
    store_words(row + 2 * at, words);
  }
}

// The larger, and NaN where either is.
__device__ inline float larger_or_nan(float a, float b) { return a > b || a != a ? a : b; }
template <int kCount>
__device__ float largest_of(const float (&x)[kCount]) {
  float most = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) most = larger_or_nan(fabsf(x[i]), most);
  return most;
}
// Of `lanes` neighbours, a power of two; all of a warp come here.
__device__ inline float largest_of_lanes(float most, int lanes) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    if (step < lanes) most = larger_or_nan(most, __shfl_xor_sync(kAllLanes, most, step));
  }
  return most;
}

// To pages of Q8_0: a block of 32 elements is that of neighbouring lanes, all of whom come here; those that
// are not `active` store nothing.
template <int kCount>
__device__ void store_kv_q8(const float (&x)[kCount], int at, int dim, unsigned char* row, bool active) {
  const float most = largest_of_lanes(largest_of(x), 32 / kCount);
  if (!active) return;
  const float wanted = most / 127.0f;
  const unsigned short scale = __half_as_ushort(__float2half_rn(wanted > 65504.0f ? 65504.0f : wanted));
  const float kept = __half2float(__ushort_as_half(scale));
  const float inverse = kept > 0.0f ? 1.0f / kept : 0.0f;
  unsigned words[kCount / 4] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float whole = rintf(x[i] * inverse);
    const float clamped = whole < 127.0f ? fmaxf(whole, -127.0f) : 127.0f;
    words[i / 4] |= (static_cast<unsigned>(static_cast<int>(clamped)) & 0xffu) << (8 * (i % 4));
  }
  store_words(row + at, words);
  if (at % 32 == 0) *reinterpret_cast<unsigned short*>(row + dim + at / 16) = scale;
}

// Of a row's largest number (KvWrite's rule): the exponent of most / 448, and one more where its fraction is
// more than 448's, 1.75.
__device__ inline float f8_scale(float most) {
  if (most != most) return __uint_as_float(0x7fc00000u);
  if (most < kF8Smallest) return 0;
  const unsigned up = (__float_as_uint(most) + 0x1fffffu) >> 23;
  return fminf(__uint_as_float((up - 8) << 23), kF8MostScale);
}
// To pages of F8_E4M3, by the row's scale.
template <int kCount>
__device__ void store_kv_f8(const float (&x)[kCount], float scale, int at, unsigned char* row) {
  const float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
  unsigned words[kCount / 4] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const unsigned number = scale == scale ? e4m3_of(x[i] * inverse) : kNanE4M3;
    words[i / 4] |= number << (8 * (i % 4));
  }
  store_words(row + at, words);
}

}  // namespace qiao::cuda
