// Reads a decoder's tensors and lays them out on a chip.
#pragma once

#include <cstdint>
#include <vector>

#include "models/config.h"
#include "models/decoder.h"
#include "models/shards.h"
#include "nn/layers.h"

namespace qiao {

struct DecoderLayer {
  nn::RmsNormLayer attention_norm, ffn_norm;
  nn::RmsNormLayer post_attention_norm, post_ffn_norm;  // where config.post_norms
  nn::AttentionLayer attention;
  nn::MlpLayer mlp;  // one of the two has weights
  nn::MoeLayer moe;
  bool is_moe = false;
};

struct DecoderWeights {
  nn::EmbeddingLayer embedding;
  std::vector<DecoderLayer> layers;
  nn::RmsNormLayer final_norm;
  // Shares the embedding's weight where they are tied and on one rank. Of several ranks each has some rows.
  nn::LinearLayer head;
  std::vector<int64_t> head_rows;  // by rank; empty: one rank, or whole on each
  // Of ranks that train together: weights, and the memory of small tensors, that are on several of them, each
  // of which has an addend of their gradient: norms of queries and keys, keys' and values' heads that are on
  // several ranks, the head (whose rows of a batch are dealt out). What else is on several has it whole
  // there.
  std::vector<const void*> summed;
  Shards shards;                                          // what of the model is here
  std::unique_ptr<nn::RotaryTable> rotary, local_rotary;  // local: of sliding layers, or absent
  uint64_t bytes = 0;
};

// See Decoder::load. Every tensor's name, dtype and shape is checked before the first is laid out.
DecoderWeights load_weights(const ModelFiles& files, Backend& backend, const DecoderConfig& config,
                            const DecoderOptions& options);

// The tensors that a Hugging Face checkpoint of this configuration has, of `dtype`, as Transformers names
// them.
std::vector<TensorInfo> list_weights(const ModelFiles& files, const DecoderConfig& config, DType dtype);

}  // namespace qiao
