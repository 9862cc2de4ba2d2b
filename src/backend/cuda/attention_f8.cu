// Attention over pages of F8_E4M3: attention_kernel.h, attention_f8.h.
#include "backend/cuda/attention_f8.h"

#include "backend/cuda/attention_kernel.h"

namespace qiao::cuda {

void launch_attention_f8(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  if (how.rounded && launch_rounded<RoundedF8>(stream, how, op)) return;
  launch_attention<F8Elements>(stream, how, op);
}

}  // namespace qiao::cuda
