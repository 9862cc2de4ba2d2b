// Weights of F8_128 with x in E4M3: matmul_mma.h, matmul_few.h.
#include "backend/cuda/matmul_few.h"

namespace qiao::cuda {

void launch_matmul_f8(const Stream& stream, const MatmulArguments& op, bool few) {
  if (!few) {
    launch_many<F8Product>(stream, op);
  } else if (stream.compute_major() == 9) {
    launch_few<F8WgmmaProduct>(stream, op);
  } else {
    launch_few<F8Product>(stream, op);
  }
}

}  // namespace qiao::cuda
