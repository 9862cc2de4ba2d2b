// Which instructions this machine has, and which set the kernels use. Layouts and results do not depend on
// the set wherever an op's contract fixes the order of rounding.
#pragma once

#include <string_view>

namespace qiao::cpu {

enum class Isa {
  kGeneric,     // plain C++, any machine
  kAvx2,        // AVX2, FMA, F16C
  kAvx512,      // AVX-512 F, BW, VL, DQ
  kAvx512Vnni,  // and VNNI
  kAvx512Bf16,  // and BF16
};

// The widest set that the processor and the system support, lowered by
// QIAO_CPU_ISA=generic|avx2|avx512|avx512_vnni|avx512_bf16 (for tests and benches; a set the machine lacks
// is an Error). Read once.
Isa active_isa();
Isa widest_isa();  // the widest set that the processor and the system support
std::string_view name(Isa isa);

}  // namespace qiao::cpu
