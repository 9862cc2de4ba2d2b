// All that a kernel (*.cu) includes of CUDA. Each is compiled twice: by nvcc for the chip, and by g++ with
// the stand-in of tests/backend/cuda_stand_in, which runs it on the CPU. So a kernel keeps to what both know:
// - CUDA C++, the math functions, instructions.h and the helpers below; no <<<>>>, __shared__, asm;
// - a kernel begins with begin_kernel(): it may be launched before the one before it has ended;
// - blocks of whole warps; threads of a block end together where there are barriers;
// - sums in an order of the row's own: no atomics of floats. Both compilers leave a product and an addition
// as
//   they are written (--fmad=false, -ffp-contract=off): fmaf() where one rounding is meant;
// - error.h and fmt stay in .cc files: nvcc need not read them.
#pragma once

#include <cstdint>
#include <tuple>
#include <utility>

#include "backend/cuda/instructions.h"
#include "backend/cuda/runtime.h"

namespace qiao::cuda {

inline constexpr uint32_t kAllLanes = 0xffffffffu;
// That a quarter of a multiprocessor has for a lane of each of three warps (set_registers).
inline constexpr int kWgmmaRegisters = 504;

// Gives `kernel` to the stream; nothing where the grid is empty. Throws as check() does, naming `name`.
template <class... P, class... A>
void launch(const char* name, const Stream& stream, void (*kernel)(P...), dim3 grid, dim3 block,
            size_t shared_bytes, A&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  std::tuple<P...> values(static_cast<P>(std::forward<A>(arguments))...);
  check(launch_kernel(kernel, grid, block, shared_bytes, stream.handle(), stream.next_begins_early(), values),
        name);
}

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Blocks that give each of `count` things a thread; kernels loop where there are more than a grid has.
inline unsigned blocks_for(int64_t count, int64_t per_block) {
  const int64_t blocks = ceil_div(count, per_block);
  return static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff);
}

// An arrival at an mbarrier for a warp, once all its lanes have come here.
__device__ inline void arrive_as_warp(uint64_t* arrivals) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive(arrivals);
}

// Of all lanes, the same bits in each; T is float or double.
template <class T>
__device__ inline T warp_sum(T x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lanes));
  return x;
}

// Of kWarps warps (a power of two), the same bits in each thread. `shared` has kWarps elements, and holds
// nothing that is still read when this is called again: use two in turn, or a barrier.
template <int kWarps>
__device__ inline float block_sum(float x, float* shared) {
  x = warp_sum(x);
  if constexpr (kWarps > 1) {
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < kWarps ? shared[threadIdx.x % 32] : 0.0f;
    x = warp_sum(x);
  }
  return x;
}

// True in all threads of the block that is the last of `blocks` to come here: it sees what the others wrote
// before. The ticket is 0 before and after.
__device__ inline bool last_to_come(unsigned* ticket, unsigned blocks) {
  QIAO_SHARED(int, is_last, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // one thread's covers what the barrier let it see of the others
    is_last[0] = atomicAdd(ticket, 1u) == blocks - 1 ? 1 : 0;
    if (is_last[0] != 0) *ticket = 0;
    __threadfence();
  }
  __syncthreads();
  return is_last[0] != 0;
}

// Four elements of a row from a multiple of 4 on; zeros beyond its end. `aligned`: the row begins at a
// multiple of 16 bytes.
__device__ inline float4 load_four(const float* row, int64_t at, int64_t width, bool aligned) {
  if (aligned && at + 4 <= width) return *reinterpret_cast<const float4*>(row + at);
  return make_float4(at < width ? row[at] : 0.0f, at + 1 < width ? row[at + 1] : 0.0f,
                     at + 2 < width ? row[at + 2] : 0.0f, at + 3 < width ? row[at + 3] : 0.0f);
}
__device__ inline void store_four(float* row, int64_t at, int64_t width, bool aligned, float4 value) {
  if (aligned && at + 4 <= width) {
    *reinterpret_cast<float4*>(row + at) = value;
    return;
  }
  if (at < width) row[at] = value.x;
  if (at + 1 < width) row[at + 1] = value.y;
  if (at + 2 < width) row[at + 2] = value.z;
  if (at + 3 < width) row[at + 3] = value.w;
}
__host__ __device__ inline bool aligned_16(const void* data) {
  return (reinterpret_cast<uintptr_t>(data) & 15) == 0;
}

}  // namespace qiao::cuda
