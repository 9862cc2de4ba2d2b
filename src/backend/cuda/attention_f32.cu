// Attention over pages of F32, and over packed rows: attention_kernel.h.
#include "backend/cuda/attention_kernel.h"

namespace qiao::cuda {

void launch_attention_f32(const Stream& stream, const AttentionLaunch& how, const AttentionArguments& op) {
  launch_attention<F32Elements>(stream, how, op);
}

}  // namespace qiao::cuda
