// How a family's files name its tensors.
#pragma once

#include <string_view>

namespace qiao {

// Stems, before ".weight" or ".bias". `{}` is the layer's index; of expert_* the second one is the expert's.
// Empty: the format has no such name. Where a fused name (qkv, gate_up) has a tensor, it stands for its
// parts.
struct TensorNames {
  std::string_view embedding, output, final_norm;
  std::string_view attention_norm, q, k, v, qkv, attention_output, q_norm, k_norm, post_attention_norm;
  std::string_view ffn_norm, gate, up, gate_up, down, post_ffn_norm;
  std::string_view router;
  std::string_view experts_gate, experts_up, experts_gate_up, experts_down;  // stacked: [E, F, C], [E, C, F]
  std::string_view expert_gate, expert_up, expert_down;                      // one by one
  std::string_view shared_gate, shared_up, shared_down;
};

}  // namespace qiao
