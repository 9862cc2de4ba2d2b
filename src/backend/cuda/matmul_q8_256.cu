#include "backend/cuda/matmul_few.h"
#include "backend/cuda/matmul_q8.h"

namespace qiao::cuda {

bool launch_q8_of_256(const Stream& stream, const MatmulArguments& op, bool few) {
  switch (op.weight.dtype) {
    QIAO_Q8_CASE(kQ2_K)
    QIAO_Q8_CASE(kQ3_K)
    QIAO_Q8_CASE(kQ4_K)
    QIAO_Q8_CASE(kQ5_K)
    QIAO_Q8_CASE(kQ6_K)
    default:
      return false;
  }
}

}  // namespace qiao::cuda
