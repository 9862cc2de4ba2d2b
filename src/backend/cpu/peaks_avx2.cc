// Twelve independent chains in 16 registers, in assembly: gcc 12 spills such loops written with intrinsics.
#include "backend/cpu/peaks.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace qiao::cpu {
namespace {

#define QIAO_REPEAT_12(instruction)                                                                     \
  instruction("0") instruction("1") instruction("2") instruction("3") instruction("4") instruction("5") \
      instruction("6") instruction("7") instruction("8") instruction("9") instruction("10")             \
          instruction("11")
#define QIAO_CLOBBERS                                                                                        \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm13", \
      "xmm14", "xmm15", "cc"

double f32(int64_t iterations) {
#define QIAO_CLEAR(r) "vxorps %%ymm" r ", %%ymm" r ", %%ymm" r "\n\t"
#define QIAO_FMA(r) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" r "\n\t"
  const double operations = static_cast<double>(iterations) * 12 * 8 * 2;
  asm volatile(QIAO_REPEAT_12(QIAO_CLEAR) QIAO_CLEAR("14") QIAO_CLEAR("15") "1:\n\t" QIAO_REPEAT_12(QIAO_FMA)
               "dec %0\n\t"
               "jnz 1b\n\t"
               : "+r"(iterations)
               :
               : QIAO_CLOBBERS);
  return operations;
}

// vpmaddubsw and vpaddw: the least that a dot product of bytes costs without VNNI, while 16 bits hold the
// sums.
double int8(int64_t iterations) {
#define QIAO_MADD(r) "vpmaddubsw %%ymm14, %%ymm15, %%ymm13\n\tvpaddw %%ymm13, %%ymm" r ", %%ymm" r "\n\t"
  const double operations = static_cast<double>(iterations) * 12 * 32 * 2;
  asm volatile(QIAO_CLEAR("14") QIAO_CLEAR("15") "1:\n\t" QIAO_REPEAT_12(QIAO_MADD)
               "dec %0\n\t"
               "jnz 1b\n\t"
               : "+r"(iterations)
               :
               : QIAO_CLOBBERS);
  return operations;
}

uint64_t read(const std::byte* data, size_t bytes) {
  __m256i sums[4] = {};
  for (size_t at = 0; at < bytes; at += 128) {
    for (size_t i = 0; i < 4; ++i) {
      const auto* from = reinterpret_cast<const __m256i*>(data + at + i * 32);
      sums[i] = _mm256_xor_si256(sums[i], _mm256_loadu_si256(from));
    }
  }
  const __m256i all =
      _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0) ^ _mm256_extract_epi64(all, 2));
}

}  // namespace

void add_peak_loops_avx2(PeakLoops& loops) {
  loops.f32 = f32;
  loops.int8 = int8;
  loops.read = read;
}

}  // namespace qiao::cpu
#endif
