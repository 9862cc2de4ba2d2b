// The machine's instructions that CUDA C++ has no function for, as functions. Where the chip is tested
// without a device, tests/backend/cuda_stand_in/backend/cuda/instructions.h stands in for this file: what is
// added here is added there.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <tuple>
#include <utility>

namespace qiao::cuda {

template <class... P, size_t... kIndex>
cudaError_t launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                          cudaStream_t stream, std::tuple<P...>& arguments, std::index_sequence<kIndex...>) {
  void* pointers[] = {static_cast<void*>(&std::get<kIndex>(arguments))..., nullptr};
  const auto* function = reinterpret_cast<const void*>(kernel);
  shared_bytes = (shared_bytes + 15) / 16 * 16;  // ptxas reads 16 bytes at once where it sees fewer wanted
  // Every device gives 48 KiB without being asked, of which static arrays take some.
  if (shared_bytes > 32 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  return cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream);
}
template <class... P>
cudaError_t launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                          cudaStream_t stream, std::tuple<P...>& arguments) {
  return launch_kernel(kernel, grid, block, shared_bytes, stream, arguments, std::index_sequence_for<P...>());
}

// The shared memory that the launch asked for, aligned to 1024 bytes; at most 227 KiB together with
// QIAO_SHARED's.
template <class T>
__device__ inline T* shared_memory() {
  extern __shared__ __align__(1024) unsigned char qiao_dynamic_shared[];
  return reinterpret_cast<T*>(qiao_dynamic_shared);
}

// QIAO_SHARED(float, sums, 8): float sums[8] of the block, at least 16-byte aligned, not initialised.
#define QIAO_SHARED(type, name, count) __shared__ __align__(16) type name[count]

#define QIAO_NO_INLINE __noinline__

__device__ inline uint32_t shared_address(const void* data) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(data));
}

// cp.async: kBytes (4, 8 or 16), aligned to themselves, from global to shared memory; zeros where not `valid`
// (global is then not read, but an address of the tensor). They have arrived once this thread has waited for
// their group and, for other threads, a barrier followed.
template <int kBytes>
__device__ inline void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
  }
}
// Ends a group: the copies of this thread since the last one.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until no more than the last kGroupsLeft groups of this thread are on their way.
template <int kGroupsLeft>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// Barriers of some warps: `id` from 1 to 15 (0 is __syncthreads'), `threads` a multiple of 32. arrive does
// not wait.
__device__ inline void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ldmatrix: 1, 2 or 4 matrices of 8 x 8 elements of 16 bits from shared memory. Lane 8 m + r names row r of
// matrix m: 16 bytes, aligned (lanes from 8 * count on name anything). Lane l gets of each matrix elements
// [l / 4][2 (l % 4)] (low half) and [l / 4][2 (l % 4) + 1]; transposed: [2 (l % 4)][l / 4] and
// [2 (l % 4) + 1][l / 4]. All lanes of the warp call.
__device__ inline void load_matrices(uint32_t (&out)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(out[0])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices(uint32_t (&out)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&out)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(out[0])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&out)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// mma.sync: D[16, 8] += A[16, K] B[K, 8] by a whole warp. With g = lane / 4, j = lane % 4 and e elements in a
// 32-bit register (1: K = 8; 2 of 16 bits: K = 16; 4 of 8 bits: K = 32), lowest k in the lowest bits, a lane
// holds
//   a[0]: A[g][e j …],  a[1]: A[g + 8][e j …],  a[2]: A[g][K / 2 + e j …],  a[3]: A[g + 8][K / 2 + e j …]
//   b[0]: B[e j …][g],  b[1]: B[K / 2 + e j …][g]
//   d[0], d[1]: D[g][2 j], D[g][2 j + 1];  d[2], d[3]: D[g + 8][2 j], D[g + 8][2 j + 1]
// so a is what load_matrices gives of A row-major (matrices: rows 0-7, 8-15 of the left half, then of the
// right), and b what it gives of B^T row-major. (PTX ISA, "Matrix Fragments for mma.m16n8k16 / k32".)
__device__ inline void multiply_add_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void multiply_add_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Exact while no sum leaves 32 bits.
__device__ inline void multiply_add_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Of compute capability 8.9 and more; a kernel that was built for less ends with an error there.
__device__ inline void multiply_add_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  static_cast<void>(d), static_cast<void>(a), static_cast<void>(b);
  __trap();
#endif
}

// K = 8, one element in a register: a float of which the low 13 bits do not count. Of kTiles B and D beside
// each other.
template <int kTiles>
__device__ inline void multiply_add_tf32(float (*d)[4], const uint32_t (&a)[4], const uint32_t (*b)[2]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[n][0]), "r"(b[n][1]));
  }
}

// FP8 of four exponent and three mantissa bits, without infinities: to nearest even, larger ones become 448.
__device__ inline uint8_t e4m3_of(float value) {
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}
__device__ inline float float_of_e4m3(uint8_t bits) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(bits, __NV_E4M3)));
}

}  // namespace qiao::cuda
