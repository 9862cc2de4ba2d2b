// The machine's instructions that CUDA C++ has no function for, as functions. Where the chip is tested
// without a device, tests/backend/cuda_stand_in/backend/cuda/instructions.h stands in for this file: what is
// added here is added there.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "backend/cuda/runtime.h"

namespace qiao::cuda {

// Lets a kernel have so much dynamic shared memory on this thread's device. Calls of the driver, made once.
// All kernels ask for the same carve-out, the largest: a multiprocessor divides its memory between shared
// memory and L1 anew only when nothing runs on it, so that a small kernel which left that to the driver would
// keep the next one from beginning early beside it.
inline cudaError_t ready_kernel(const void* kernel, size_t bytes) {
  // Every device gives 48 KiB without being asked, of which static arrays take some.
  constexpr size_t kUnasked = 32 * 1024;
  static std::mutex mutex;
  static std::map<std::tuple<int, int64_t, const void*>, size_t> allowed;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{device, device_resets(), kernel}];
  if (most == 0) {
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                                       cudaSharedmemCarveoutMaxShared);
        error != cudaSuccess) {
      return error;
    }
    most = kUnasked;
  }
  if (bytes <= most) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error == cudaSuccess) most = bytes;
  return error;
}

// `early`: may begin before the kernel given before it has ended (programmatic dependent launch).
template <class... P, size_t... kIndex>
cudaError_t launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                          cudaStream_t stream, bool early, std::tuple<P...>& arguments,
                          std::index_sequence<kIndex...>) {
  void* pointers[] = {static_cast<void*>(&std::get<kIndex>(arguments))..., nullptr};
  const auto* function = reinterpret_cast<const void*>(kernel);
  shared_bytes = (shared_bytes + 15) / 16 * 16;  // ptxas reads 16 bytes at once where it sees fewer wanted
  if (const cudaError_t error = ready_kernel(function, shared_bytes); error != cudaSuccess) return error;
  if (!early) return cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes;
  config.stream = stream, config.attrs = &attribute, config.numAttrs = 1;
  return cudaLaunchKernelExC(&config, function, pointers);
}
template <class... P>
cudaError_t launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                          cudaStream_t stream, bool early, std::tuple<P...>& arguments) {
  return launch_kernel(kernel, grid, block, shared_bytes, stream, early, arguments,
                       std::index_sequence_for<P...>());
}

// A kernel that was launched early waits here until the kernel before it has ended and all that it wrote is
// there. Every thread of every kernel calls it before it touches memory that a kernel writes; what no kernel
// writes, such as weights, may be asked for before.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// On its way to the L2 cache, where what is written meanwhile by another kernel lies as well: may be called
// before that wait.
__device__ inline void prefetch(const void* data) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(data));
#endif
}
// From here on the kernel after this one may begin where there is room, to wait as above.
__device__ inline void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// The first line of a kernel that has nothing to do before.
__device__ inline void begin_kernel() {
  let_next_begin();
  wait_for_previous();
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

// Adds to *at and gives what it was, after all that this thread wrote or was shown by a barrier: who finds
// the sum and then calls acquire() sees it, and shows it to others by a barrier. It does not wait for the
// answer.
__device__ inline unsigned add_released(unsigned* at, unsigned value) {
  unsigned before;
  asm volatile("atom.release.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(at)), "r"(value)
               : "memory");
  return before;
}
__device__ inline void acquire() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Barriers of some warps: `id` from 1 to 15 (0 is __syncthreads'), `threads` a multiple of 32. arrive does
// not wait.
__device__ inline void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Waits like barrier_sync; whether any of those threads says so.
__device__ inline bool barrier_any(int id, int threads, bool says) {
  int any;
  asm volatile(
      "{\n"
      ".reg .pred says, any;\n"
      "setp.ne.s32 says, %3, 0;\n"
      "bar.red.or.pred any, %1, %2, says;\n"
      "selp.s32 %0, 1, 0, any;\n"
      "}"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(static_cast<int>(says))
      : "memory");
  return any != 0;
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
// The same with what it is added to in other registers.
__device__ inline void multiply_add_s8(int (&d)[4], const int (&c)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]),
        "r"(c[3]));
}
// K = 16: of the registers above, a[0], a[1] and b[0] are all that there is.
__device__ inline void multiply_add_s8(int (&d)[4], const int (&c)[4], const uint32_t (&a)[2], uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
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

// 2^x to two units in the last place; 0 where that is below 2^-126.
__device__ inline float exp2_flushed(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// a / b to two units in the last place, b from 1 on: a * (1 / b), where a, 1 / b and the product are 0 below
// 2^-126. No branch, as a division rounded to nearest has.
__device__ inline float divide_flushed(float a, float b) {
  float y;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// FP8 of four exponent and three mantissa bits, without infinities: to nearest even, larger ones become 448.
__device__ inline uint8_t e4m3_of(float value) {
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}
__device__ inline float float_of_e4m3(uint8_t bits) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(bits, __NV_E4M3)));
}

// Four numbers of it, the first in the lowest bits, as F16, exactly: the first two, and the other two.
__device__ inline void unpack_e4m3(uint32_t four, uint32_t& first, uint32_t& second) {
  const auto two = [](uint32_t word) {
    const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(word), __NV_E4M3);
    return pair.x | static_cast<uint32_t>(pair.y) << 16;
  };
  first = two(four & 0xffff), second = two(four >> 16);
}

// Two numbers of BF16 times two, to nearest even; what is below the least normal number counts too.
__device__ inline uint32_t multiply_bf16(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));  // -0 each
  return product;
}

// mbarrier: 8 bytes of shared memory that count arrivals and bytes on their way. A phase ends when `count`
// arrivals and all the bytes that they expect have come; then the next begins, with the same count. The
// first phase's parity is 0, the next one's 1, and so on. One thread makes them, then calls
// arrivals_ready; a barrier of the block follows.
__device__ inline void arrivals_init(uint64_t* arrivals, unsigned count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(arrivals)), "r"(count) : "memory");
}
__device__ inline void arrivals_ready() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ inline void arrive(uint64_t* arrivals) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(arrivals)) : "memory");
}
// An arrival that comes once all of this thread's copy_async from before have landed: whoever sees its phase
// end sees them. They need no group of copies then.
__device__ inline void arrive_with_copies(uint64_t* arrivals) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(arrivals)) : "memory");
}
// Until the phase of that parity has ended: at once where it is not the one that is open.
__device__ inline void wait_arrivals(uint64_t* arrivals, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
#if __CUDA_ARCH__ >= 900
      "mbarrier.try_wait.parity.shared.b64 ended, [%0], %1;\n"
#else
      "mbarrier.test_wait.parity.shared.b64 ended, [%0], %1;\n"
#endif
      "@!ended bra again;\n"
      "}" ::"r"(shared_address(arrivals)),
      "r"(parity)
      : "memory");
}

// What follows is of Hopper alone (sm_90a): a kernel that was built for another device ends with an error
// there.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define QIAO_HOPPER(...) asm volatile(__VA_ARGS__)
#else
#define QIAO_HOPPER(...) __trap()
#endif

// An arrival after which the phase also waits for so many bytes of copy_bulk.
__device__ inline void arrive_expecting(uint64_t* arrivals, uint32_t bytes) {
  QIAO_HOPPER("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrivals)),
              "r"(bytes)
              : "memory");
}
// cp.async.bulk: a multiple of 16 bytes, both sides aligned to 16, from global to shared memory, by a whole
// warp; they are there, for loads and for wgmma, once the phase of `arrivals` that expects them has ended.
__device__ inline void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* arrivals) {
  QIAO_HOPPER(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "@one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n"
      "}" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(arrivals))
      : "memory");
}

// wgmma: D[64, N] += A[64, 16] B[16, N] by a warpgroup (four warps from a multiple of four on, all of them at
// the same instructions), N = 8, 16, 32, 64, 128, 192 or 256. Warp w has rows 16 w to 16 w + 15 of A and D: a
// lane's a is that of mma.m16n8k16, its d[4 t] to d[4 t + 3] the same instruction's d of columns 8 t to 8 t
// + 7. B^T lies in shared memory (BF16, or F16 for multiply_async_f16): rows of 64 elements of 16 bits (128
// bytes), from a multiple of 1024 bytes on, in which 16-byte piece p of row r lies at place p ^ (r % 8); an
// instruction takes 16 columns of it, those that multiply_operand's `step` names. (PTX ISA, "Matrix fragments
// for wgmma .m64nNk16", "128-Byte swizzle".)
//
// The products are made at any time from multiply_async to multiply_wait: until then nobody writes those rows
// of B^T, reads d or writes a. They are made in order, each added to the sum before. multiply_begin comes
// before the first one after a register of d or a was written; multiply_commit ends a group.
__device__ inline uint64_t multiply_operand(const void* rows, int step) {
  const uint64_t address = shared_address(rows) + static_cast<uint32_t>(step) * 32;
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
// Of rows that lie otherwise, N = 8: the step's two 16-byte pieces of row r at 16 r, and `apart` bytes from
// there (a multiple of 16). Where that is less than 128, rows of B^T that are nobody's are others' pieces.
__device__ inline uint64_t multiply_operand_of_pieces(const void* pieces, int apart) {
  return shared_address(pieces) >> 4 | static_cast<uint64_t>(apart >> 4) << 16 | uint64_t{128 >> 4} << 32;
}
// Of B itself, whose rows of 64 elements lie like those of B^T above: 16 rows from `rows` on (a multiple of
// 1024 bytes), where N is more than 64 the next 64 columns' rows `apart` bytes behind.
__device__ inline uint64_t multiply_operand_of_columns(const void* rows, int apart) {
  return shared_address(rows) >> 4 | static_cast<uint64_t>(apart >> 4) << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}
// The same of what lies so many bytes (a multiple of 16) behind.
__device__ inline uint64_t multiply_operand_behind(uint64_t operand, int bytes) {
  return operand + static_cast<uint64_t>(bytes >> 4);
}
// Where rows of B^T were stored, or brought by copy_async: by the threads that stored, before the barrier
// after which they are multiplied, or by those that multiply, after it.
__device__ inline void multiply_stored() { QIAO_HOPPER("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ inline void multiply_begin() { QIAO_HOPPER("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void multiply_commit() { QIAO_HOPPER("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until no more than the last kGroupsLeft groups are being made; `d`: all that those before have added to.
template <int kGroupsLeft, int kCount>
__device__ inline void multiply_wait(float (&d)[kCount]) {
  QIAO_HOPPER("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");  // not read before
}
// Then a = next. By the compiler's own rules that could be done before: it knows nothing of a's late readers.
template <int kCount, int kSteps>
__device__ inline void multiply_wait_and_take(float (&d)[kCount], uint32_t (&a)[kSteps][4],
                                              const uint32_t (&next)[kSteps][4]) {
  multiply_wait<0>(d);
#pragma unroll
  for (int i = 0; i < kSteps * 4; ++i) {
    asm volatile("mov.b32 %0, %1;" : "+r"(a[i / 4][i % 4]) : "r"(next[i / 4][i % 4]) : "memory");
  }
}

// setmaxnreg: a warpgroup's registers a thread from here on, a multiple of 8; `more` than the launch gave,
// which others must have given away, or fewer.
template <int kRegisters, bool kMore>
__device__ inline void set_registers() {
  if constexpr (kMore) {
    QIAO_HOPPER("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
  } else {
    QIAO_HOPPER("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
  }
}

#define QIAO_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define QIAO_D16(i) QIAO_D4(i), QIAO_D4((i) + 4), QIAO_D4((i) + 8), QIAO_D4((i) + 12)
#define QIAO_A "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
#define QIAO_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define QIAO_NAMES_32 \
  QIAO_NAMES_16       \
  ", "                \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define QIAO_NAMES_64                                                                \
  QIAO_NAMES_32                                                                      \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define QIAO_NAMES_96                                                                \
  QIAO_NAMES_64                                                                      \
  ", "                                                                               \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define QIAO_NAMES_128                                                                           \
  QIAO_NAMES_96                                                                                  \
  ", "                                                                                           \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
__device__ inline void multiply_async(float (&d)[4], const uint32_t (&a)[4], uint64_t b) {
  QIAO_HOPPER(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, 1, 1, 1, "
      "0;"
      : QIAO_D4(0)
      : QIAO_A);
}
__device__ inline void multiply_async(float (&d)[8], const uint32_t (&a)[4], uint64_t b) {
  QIAO_HOPPER(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, %12, 1, 1, 1, 0;"
      : QIAO_D4(0), QIAO_D4(4)
      : QIAO_A);
}
__device__ inline void multiply_async(float (&d)[16], const uint32_t (&a)[4], uint64_t b) {
  QIAO_HOPPER("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" QIAO_NAMES_16
              "}, {%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
              : QIAO_D16(0)
              : QIAO_A);
}
__device__ inline void multiply_async(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  QIAO_HOPPER("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" QIAO_NAMES_32
              "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
              : QIAO_D16(0), QIAO_D16(16)
              : QIAO_A);
}
__device__ inline void multiply_async(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  QIAO_HOPPER("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" QIAO_NAMES_64
              "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
              : QIAO_D16(0), QIAO_D16(16), QIAO_D16(32), QIAO_D16(48)
              : QIAO_A);
}
__device__ inline void multiply_async(float (&d)[96], const uint32_t (&a)[4], uint64_t b) {
  QIAO_HOPPER("wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" QIAO_NAMES_96
              "}, {%96, %97, %98, %99}, %100, 1, 1, 1, 0;"
              : QIAO_D16(0), QIAO_D16(16), QIAO_D16(32), QIAO_D16(48), QIAO_D16(64), QIAO_D16(80)
              : QIAO_A);
}
__device__ inline void multiply_async(float (&d)[128], const uint32_t (&a)[4], uint64_t b) {
  QIAO_HOPPER("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" QIAO_NAMES_128
              "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 0;"
              : QIAO_D16(0), QIAO_D16(16), QIAO_D16(32), QIAO_D16(48), QIAO_D16(64), QIAO_D16(80),
                QIAO_D16(96), QIAO_D16(112)
              : QIAO_A);
}
// The same of E4M3, with 32 columns for each 16 and N = 8, 16, 32, 64, 128 or 192: a is that of mma.m16n8k32,
// a row of B^T 128 elements. Where not `adds`, d is what the product is, whatever it was.
#define QIAO_ADDS(number) "{\n.reg .pred adds;\nsetp.ne.s32 adds, %" number ", 0;\n"
__device__ inline void multiply_async_e4m3(float (&d)[4], const uint32_t (&a)[4], uint64_t b, bool adds) {
  QIAO_HOPPER(QIAO_ADDS("9") "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%0, %1, %2, %3}, "
              "{%4, %5, %6, %7}, %8, adds, 1, 1;\n}"
              : QIAO_D4(0)
              : QIAO_A, "r"(static_cast<int>(adds)));
}
__device__ inline void multiply_async_e4m3(float (&d)[8], const uint32_t (&a)[4], uint64_t b, bool adds) {
  QIAO_HOPPER(QIAO_ADDS("13") "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 "
              "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12, adds, 1, 1;\n}"
              : QIAO_D4(0), QIAO_D4(4)
              : QIAO_A, "r"(static_cast<int>(adds)));
}
__device__ inline void multiply_async_e4m3(float (&d)[16], const uint32_t (&a)[4], uint64_t b, bool adds) {
  QIAO_HOPPER(QIAO_ADDS("21") "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {" QIAO_NAMES_16
                              "}, {%16, %17, %18, %19}, %20, adds, 1, 1;\n}"
              : QIAO_D16(0)
              : QIAO_A, "r"(static_cast<int>(adds)));
}
__device__ inline void multiply_async_e4m3(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool adds) {
  QIAO_HOPPER(QIAO_ADDS("37") "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" QIAO_NAMES_32
                              "}, {%32, %33, %34, %35}, %36, adds, 1, 1;\n}"
              : QIAO_D16(0), QIAO_D16(16)
              : QIAO_A, "r"(static_cast<int>(adds)));
}
__device__ inline void multiply_async_e4m3(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool adds) {
  QIAO_HOPPER(QIAO_ADDS("69") "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" QIAO_NAMES_64
                              "}, {%64, %65, %66, %67}, %68, adds, 1, 1;\n}"
              : QIAO_D16(0), QIAO_D16(16), QIAO_D16(32), QIAO_D16(48)
              : QIAO_A, "r"(static_cast<int>(adds)));
}
__device__ inline void multiply_async_e4m3(float (&d)[96], const uint32_t (&a)[4], uint64_t b, bool adds) {
  QIAO_HOPPER(QIAO_ADDS("101") "wgmma.mma_async.sync.aligned.m64n192k32.f32.e4m3.e4m3 {" QIAO_NAMES_96
                               "}, {%96, %97, %98, %99}, %100, adds, 1, 1;\n}"
              : QIAO_D16(0), QIAO_D16(16), QIAO_D16(32), QIAO_D16(48), QIAO_D16(64), QIAO_D16(80)
              : QIAO_A, "r"(static_cast<int>(adds)));
}
// Attention's products, of BF16 or F16: rows of B^T with N = 64, where not `adds` written and not added, and
// rows of B (multiply_operand_of_columns) with N = 64 or 128.
#define QIAO_MULTIPLY(name, type)                                                                    \
  __device__ inline void name(float(&d)[32], const uint32_t(&a)[4], uint64_t b, bool adds) {         \
    QIAO_HOPPER(QIAO_ADDS("37") "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type          \
                                " {" QIAO_NAMES_32 "}, {%32, %33, %34, %35}, %36, adds, 1, 1, 0;\n}" \
                : QIAO_D16(0), QIAO_D16(16)                                                          \
                : QIAO_A, "r"(static_cast<int>(adds)));                                              \
  }                                                                                                  \
  __device__ inline void name##_of_columns(float(&d)[32], const uint32_t(&a)[4], uint64_t b) {       \
    QIAO_HOPPER("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" QIAO_NAMES_32       \
                "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                          \
                : QIAO_D16(0), QIAO_D16(16)                                                          \
                : QIAO_A);                                                                           \
  }                                                                                                  \
  __device__ inline void name##_of_columns(float(&d)[64], const uint32_t(&a)[4], uint64_t b) {       \
    QIAO_HOPPER("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" QIAO_NAMES_64      \
                "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                          \
                : QIAO_D16(0), QIAO_D16(16), QIAO_D16(32), QIAO_D16(48)                              \
                : QIAO_A);                                                                           \
  }
QIAO_MULTIPLY(multiply_async_bf16, "bf16")
QIAO_MULTIPLY(multiply_async_f16, "f16")
#undef QIAO_MULTIPLY
#undef QIAO_ADDS
#undef QIAO_NAMES_16
#undef QIAO_NAMES_32
#undef QIAO_NAMES_64
#undef QIAO_NAMES_96
#undef QIAO_NAMES_128
#undef QIAO_D4
#undef QIAO_D16
#undef QIAO_A
#undef QIAO_HOPPER

}  // namespace qiao::cuda
