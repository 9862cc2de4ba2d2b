#include "models/decoder_work.h"

#include <initializer_list>

namespace qiao {
namespace {

// Adds what one row of x costs: each weight is multiplied, and read, once.
void add(const std::vector<nn::WeightPiece>& pieces, double share, double& flops, double& bytes) {
  for (const nn::WeightPiece& piece : pieces) {
    const Weight& weight = *piece.weight;
    const double elements = static_cast<double>(weight.experts()) * static_cast<double>(weight.rows()) *
                            static_cast<double>(weight.columns());
    flops += share * 2.0 * elements;
    bytes += share * static_cast<double>(weight.bytes());
  }
}

}  // namespace

DecoderWork decoder_work(const DecoderWeights& weights) {
  DecoderWork work;
  for (const DecoderLayer& layer : weights.layers) {
    const nn::MoeLayer& moe = layer.moe;
    for (const nn::LinearLayer* linear :
         {&layer.attention.qkv, &layer.attention.output, &layer.mlp.gate_up, &layer.mlp.down, &moe.router,
          &moe.shared.gate_up, &moe.shared.down}) {
      add(linear->pieces, 1.0, work.layer_flops_per_token, work.bytes_per_step);
    }
    if (!layer.is_moe) continue;
    const double active = static_cast<double>(moe.experts_per_token) / static_cast<double>(moe.experts);
    add(moe.gate_up.pieces, active, work.layer_flops_per_token, work.bytes_per_step);
    add(moe.down.pieces, active, work.layer_flops_per_token, work.bytes_per_step);
  }
  add(weights.head.pieces, 1.0, work.logits_flops_per_row, work.bytes_per_step);
  if (!weights.layers.empty()) work.compute = weights.layers.front().attention.output.pieces.front().compute;
  return work;
}

}  // namespace qiao
