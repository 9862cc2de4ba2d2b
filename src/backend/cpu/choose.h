// Which of an op's kernel tables runs, and how much work is worth another thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cpu/isa.h"

namespace qiao::cpu {

template <typename Kernels>
const Kernels& choose(const Kernels& generic, const Kernels& avx2, const Kernels& avx512) {
  const Isa isa = active_isa();
  return isa >= Isa::kAvx512 ? avx512 : isa == Isa::kAvx2 ? avx2 : generic;
}

// Rows of so many elements that make a chunk of some microseconds: for less, waking a worker costs more.
inline int64_t row_grain(int64_t elements) {
  constexpr int64_t kGrainElements = 32768;
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(elements, 1));
}

}  // namespace qiao::cpu
