#include "backend/cuda/matmul_few.h"
#include "backend/cuda/matmul_q8.h"

namespace qiao::cuda {

bool launch_q8_of_tables(const Stream& stream, const MatmulArguments& op, bool few) {
  switch (op.weight.dtype) {
    QIAO_Q8_CASE(kIQ4_NL)
    QIAO_Q8_CASE(kIQ4_XS)
    QIAO_Q8_CASE(kMXFP4)
    default:
      return false;
  }
}

void launch_matmul_q8(const Stream& stream, const MatmulArguments& op, bool few) {
  static_cast<void>(launch_q8_of_32(stream, op, few) || launch_q8_of_256(stream, op, few) ||
                    launch_q8_of_tables(stream, op, few));
}

}  // namespace qiao::cuda
