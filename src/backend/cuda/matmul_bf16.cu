// BF16 weights with x rounded to BF16: matmul_mma.h, matmul_few.h.
#include "backend/cuda/matmul_few.h"

namespace qiao::cuda {

void launch_matmul_bf16(const Stream& stream, const MatmulArguments& op, bool few) {
  few ? launch_few<Bf16Product>(stream, op) : launch_many<Bf16Product>(stream, op);
}

}  // namespace qiao::cuda
