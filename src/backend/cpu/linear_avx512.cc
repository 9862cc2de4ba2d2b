// Matmul kernels for AVX-512 without VNNI (Skylake-X): int8 dot products as vpmaddubsw, vpmaddwd, vpaddd.
#include "backend/cpu/e4m3_inl.h"
#include "backend/cpu/linear_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>

namespace qiao::cpu {
namespace {

#include "backend/cpu/linear_unpack_inl.h"

#include "backend/cpu/linear_micro_inl.h"

#include "backend/cpu/linear_avx512_inl.h"

#include "backend/cpu/linear_f8_inl.h"

}  // namespace

const LinearKernels& linear_kernels_avx512() {
  static const LinearKernels table = [] {
    LinearKernels kernels = make_table<Avx512>(Isa::kAvx512);
    fill_f8<Avx512>(kernels);
    return kernels;
  }();
  return table;
}

}  // namespace qiao::cpu
#endif
