#include "backend/cuda/matmul_few.h"
#include "backend/cuda/matmul_q8.h"

namespace qiao::cuda {

bool launch_q8_of_32(const Stream& stream, const MatmulArguments& op, bool few) {
  switch (op.weight.dtype) {
    QIAO_Q8_CASE(kQ4_0)
    QIAO_Q8_CASE(kQ4_1)
    QIAO_Q8_CASE(kQ5_0)
    QIAO_Q8_CASE(kQ5_1)
    QIAO_Q8_CASE(kQ8_0)
    default:
      return false;
  }
}

}  // namespace qiao::cuda
