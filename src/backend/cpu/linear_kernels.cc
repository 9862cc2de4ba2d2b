#include "backend/cpu/linear_kernels.h"

#include "base/error.h"

namespace qiao::cpu {

FormatForm format_form(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
      return {Family::kOffset32, 3, Width::kFour};
    case DType::kQ5_0:
    case DType::kMXFP4:
      return {Family::kOffset32, 4, Width::kFive};
    case DType::kQ8_0:
    case DType::kIQ4_NL:
    case DType::kIQ4_XS:
      return {Family::kOffset32, 7, Width::kEight};
    case DType::kQ4_1:
    case DType::kQ4_K:
      return {Family::kMinimum32, 0, Width::kFour};
    case DType::kQ5_1:
    case DType::kQ5_K:
      return {Family::kMinimum32, 0, Width::kFive};
    case DType::kQ3_K:
      return {Family::kOffset16, 2, Width::kFour};
    case DType::kQ6_K:
      return {Family::kOffset16, 5, Width::kSix};
    default:
      QIAO_ASSERT(dtype == DType::kQ2_K);
      return {Family::kMinimum16, 0, Width::kFour};
  }
}

const LinearKernels& linear_kernels(Isa isa) {
  QIAO_ASSERT(isa <= widest_isa());
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx2:
      return linear_kernels_avx2();
    case Isa::kAvx512:
      return linear_kernels_avx512();
    case Isa::kAvx512Vnni:
      return linear_kernels_avx512_vnni();
    case Isa::kAvx512Bf16:
      return linear_kernels_avx512_bf16();
    default:
      break;
  }
#endif
  return linear_kernels_generic();
}

}  // namespace qiao::cpu
