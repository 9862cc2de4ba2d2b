// Attention over pages of BF16: attention_kernel.h.
#include "backend/cuda/attention_kernel.h"

namespace qiao::cuda {

void launch_attention_bf16(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  if (how.rounded && launch_rounded<RoundedBf16>(stream, how, op)) return;
  launch_attention<Bf16Elements>(stream, how, op);
}

}  // namespace qiao::cuda
