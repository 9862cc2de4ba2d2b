// CUDA's half for g++: storage and conversions, rounded to nearest even (tensor/half.h).
#pragma once

#include "backend/cuda_stand_in/cuda_runtime.h"
#include "tensor/half.h"

struct alignas(2) __half {
  unsigned short bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
inline __half __float2half(float value) { return {qiao::float_to_f16(value)}; }
inline __half __float2half_rn(float value) { return {qiao::float_to_f16(value)}; }
inline float __half2float(__half value) { return qiao::f16_to_float(value.bits); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline float2 __half22float2(__half2 value) { return {__half2float(value.x), __half2float(value.y)}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
