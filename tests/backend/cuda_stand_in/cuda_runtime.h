// CUDA C++ for g++: what kernels of the chip use of the language and of its built-in functions. Each does
// what the CUDA C++ Programming Guide and the math API say, to the bit where they do.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "backend/cuda_stand_in/cuda_runtime_api.h"
#include "backend/cuda_stand_in/engine.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline constexpr int warpSize = 32;

using std::max;
using std::min;

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t both = uint64_t{b} << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> (4 * i) & 15;
    unsigned byte = static_cast<unsigned>(both >> (8 * (pick & 7)) & 0xff);
    if ((pick & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    out |= byte << (8 * i);
  }
  return out;
}
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  }
  return sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
  for (int i = 0; i < 4; ++i) sum += (a >> (8 * i) & 0xff) * (b >> (8 * i) & 0xff);
  return sum;
}
inline int __float2int_rn(float x) {
  return std::isnan(x) ? 0 : static_cast<int>(std::clamp(std::nearbyint(double{x}), -0x1p31, 0x1p31 - 1));
}
template <class T>
T __ldg(const T* data) {
  return *data;
}
template <class T>
T __ldcg(const T* data) {
  return *data;
}

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  qiao::stand_in::barrier(0, 0, true, where);
}
inline int __syncthreads_count(int predicate, std::source_location where = std::source_location::current()) {
  return static_cast<int>(qiao::stand_in::barrier_count(predicate != 0, where));
}
inline int __syncthreads_or(int predicate, std::source_location where = std::source_location::current()) {
  return qiao::stand_in::barrier_count(predicate != 0, where) != 0 ? 1 : 0;
}
inline int __syncthreads_and(int predicate, std::source_location where = std::source_location::current()) {
  return qiao::stand_in::barrier_count(predicate == 0, where) == 0 ? 1 : 0;
}
inline void __syncwarp(uint32_t mask = 0xffffffffu,
                       std::source_location where = std::source_location::current()) {
  char nothing = 0;
  qiao::stand_in::together(
      mask, "__syncwarp", &nothing, [](void* const(&)[32], uint32_t) {}, where);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace qiao::stand_in {

template <class T>
struct Shuffle {
  T value;
  unsigned source;  // lane
  T result;
};

// The lane that a shuffle of `width` reads, or its own where that lies beyond its part.
template <class T>
T shuffle(uint32_t mask, const char* what, T value, unsigned source, const Where& where) {
  Shuffle<T> mine{value, source, value};
  together(
      mask, what, &mine,
      [](void* const(&lanes)[32], uint32_t of) {
        for (unsigned i = 0; i < 32; ++i) {
          if ((of >> i & 1) == 0) continue;
          auto* self = static_cast<Shuffle<T>*>(lanes[i]);
          // What a lane outside of the mask has is undefined.
          if ((of >> self->source & 1) != 0) {
            self->result = static_cast<Shuffle<T>*>(lanes[self->source])->value;
          } else {
            std::memset(&self->result, 0xff, sizeof(T));
          }
        }
      },
      where);
  return mine.result;
}

struct Vote {
  bool predicate;
  uint32_t result;
};
inline uint32_t ballot(uint32_t mask, const char* what, bool predicate, const Where& where) {
  Vote mine{predicate, 0};
  together(
      mask, what, &mine,
      [](void* const(&lanes)[32], uint32_t of) {
        uint32_t bits = 0;
        for (unsigned i = 0; i < 32; ++i) {
          if ((of >> i & 1) != 0 && static_cast<Vote*>(lanes[i])->predicate) bits |= uint32_t{1} << i;
        }
        for (unsigned i = 0; i < 32; ++i) {
          if ((of >> i & 1) != 0) static_cast<Vote*>(lanes[i])->result = bits;
        }
      },
      where);
  return mine.result;
}

}  // namespace qiao::stand_in

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32,
              std::source_location where = std::source_location::current()) {
  const unsigned lane = qiao::stand_in::lane(), w = static_cast<unsigned>(width);
  return qiao::stand_in::shuffle(mask, "__shfl_sync", value, lane / w * w + static_cast<unsigned>(source) % w,
                                 where);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32,
                  std::source_location where = std::source_location::current()) {
  const unsigned lane = qiao::stand_in::lane(), w = static_cast<unsigned>(width);
  const unsigned source = lane ^ static_cast<unsigned>(lanes);
  return qiao::stand_in::shuffle(mask, "__shfl_xor_sync", value, source < lane / w * w + w ? source : lane,
                                 where);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                 std::source_location where = std::source_location::current()) {
  const unsigned lane = qiao::stand_in::lane(), w = static_cast<unsigned>(width);
  return qiao::stand_in::shuffle(mask, "__shfl_up_sync", value, lane % w >= delta ? lane - delta : lane,
                                 where);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                   std::source_location where = std::source_location::current()) {
  const unsigned lane = qiao::stand_in::lane(), w = static_cast<unsigned>(width);
  return qiao::stand_in::shuffle(mask, "__shfl_down_sync", value, lane % w + delta < w ? lane + delta : lane,
                                 where);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate,
                              std::source_location where = std::source_location::current()) {
  return qiao::stand_in::ballot(mask, "__ballot_sync", predicate != 0, where);
}
inline int __any_sync(uint32_t mask, int predicate,
                      std::source_location where = std::source_location::current()) {
  return qiao::stand_in::ballot(mask, "__any_sync", predicate != 0, where) != 0 ? 1 : 0;
}
inline int __all_sync(uint32_t mask, int predicate,
                      std::source_location where = std::source_location::current()) {
  return qiao::stand_in::ballot(mask, "__all_sync", predicate != 0, where) == mask ? 1 : 0;
}

// Of whole numbers alone: sums of floats depend on who comes first.
template <class T>
requires std::is_integral_v<T> T atomicAdd(T* at, T value) {
  return std::exchange(*at, static_cast<T>(*at + value));
}
template <class T>
requires std::is_integral_v<T> T atomicMax(T* at, T value) {
  return std::exchange(*at, std::max(*at, value));
}
template <class T>
requires std::is_integral_v<T> T atomicMin(T* at, T value) {
  return std::exchange(*at, std::min(*at, value));
}
template <class T>
requires std::is_integral_v<T> T atomicExch(T* at, T value) { return std::exchange(*at, value); }
template <class T>
requires std::is_integral_v<T> T atomicCAS(T* at, T expected, T value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}
