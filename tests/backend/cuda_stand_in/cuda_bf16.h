// CUDA's bfloat16 for g++: storage and conversions, rounded to nearest even (tensor/half.h).
#pragma once

#include "backend/cuda_stand_in/cuda_runtime.h"
#include "tensor/half.h"

struct alignas(2) __nv_bfloat16 {
  unsigned short bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline __nv_bfloat16 __float2bfloat16(float value) { return {qiao::float_to_bf16(value)}; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return {qiao::float_to_bf16(value)}; }
inline float __bfloat162float(__nv_bfloat16 value) { return qiao::bf16_to_float(value.bits); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16(x), __float2bfloat16(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 value) {
  return {__bfloat162float(value.x), __bfloat162float(value.y)};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
