// What llama.cpp and Transformers call the same tensor, and what differs in it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "models/config.h"
#include "models/families.h"

namespace qiao::convert {

struct TensorPair {
  std::string gguf, hugging_face;  // "blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape;
  int64_t paired_rows = 0;   // the first rows, which the GGUF file has in pairs and Transformers in halves
  float gguf_offset = 0.0f;  // what the GGUF file has added (1 to the norms of Gemma)
};

// Every tensor that a model of this configuration may have, whether from one format or the other: biases,
// fused matrices and their parts. Mixtures of experts: the dense tensors only. `root` stands before the
// directory's names.
std::vector<TensorPair> tensor_pairs(const Family& family, const DecoderConfig& config,
                                     std::string_view root);

}  // namespace qiao::convert
