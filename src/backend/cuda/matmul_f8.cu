// Weights of F8_128 with x in E4M3: matmul_mma.h, matmul_few.h.
#include "backend/cuda/matmul_few.h"

namespace qiao::cuda {

void launch_matmul_f8(const Stream& stream, const MatmulArguments& op, bool few) {
  few ? launch_few<F8Product>(stream, op) : launch_many<F8Product>(stream, op);
}

}  // namespace qiao::cuda
