// Attention over pages of Q8_0: attention_kernel.h.
#include "backend/cuda/attention_kernel.h"

namespace qiao::cuda {

void launch_attention_q8(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  launch_attention<Q8Elements>(stream, how, op);
}

}  // namespace qiao::cuda
