// Matmul kernels for AVX-512 VNNI: one vpdpbusd is 64 multiply-adds.
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

struct Vnni : Avx512 {
  static constexpr bool kShorts = false;
  template <Width>
  static I dot(I sum, W w, X x) {
    return _mm512_dpbusd_epi32(sum, w, x);
  }
};

}  // namespace

const LinearKernels& linear_kernels_avx512_vnni() {
  static const LinearKernels table = [] {
    LinearKernels kernels = make_table<Vnni>(Isa::kAvx512Vnni);
    fill_f8<Vnni>(kernels);
    return kernels;
  }();
  return table;
}

}  // namespace qiao::cpu
#endif
