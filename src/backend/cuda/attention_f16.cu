// Attention over pages of F16: attention_kernel.h.
#include "backend/cuda/attention_kernel.h"

namespace qiao::cuda {

void launch_attention_f16(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  if (how.rounded && launch_rounded<RoundedF16>(stream, how, op)) return;
  launch_attention<F16Elements>(stream, how, op);
}

}  // namespace qiao::cuda
