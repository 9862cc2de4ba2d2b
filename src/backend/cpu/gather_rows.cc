// Rows copied whole: the limit is memory, and the plain copy of the C library reaches it.
#include <cstring>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"

namespace qiao::cpu {

void CpuBackend::do_gather_rows(const GatherRows& op) {
  const int64_t columns = op.x.shape[1];
  const int32_t* rows = op.rows.as<int32_t>();
  pool_.parallel_for(op.rows.shape[0], row_grain(columns), [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; ++s) {
      const int64_t row = rows[s * op.rows.stride[0]];
      std::memcpy(op.out.as<float>() + s * op.out.stride[0], op.x.as<float>() + row * op.x.stride[0],
                  static_cast<size_t>(columns) * sizeof(float));
    }
  });
}

}  // namespace qiao::cpu
