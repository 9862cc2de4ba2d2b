// BF16 weights with x rounded to BF16: matmul_mma.h.
#include "backend/cuda/matmul_mma.h"

namespace qiao::cuda {

void launch_matmul_bf16(const Stream& stream, const MatmulArguments& op, bool few) {
  launch_mma<Bf16Product>(stream, op, few);
}

}  // namespace qiao::cuda
