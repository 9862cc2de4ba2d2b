#include "models/decoder_layers.h"

namespace qiao {

bool adds_at_once(const DecoderConfig& config, const Collectives* ranks, bool with_adapters) {
  return ranks == nullptr && !with_adapters && !config.post_norms && config.num_experts == 0;
}

AttentionInput enter_attention(nn::Context& context, const DecoderLayer& layer, bool updated,
                               LayerStream* stream) {
  if (!stream->update.present()) return {stream->residual, &layer.attention_norm};
  const Tensor normed = context.over(stream->update);
  if (updated) {
    const Tensor sum = context.over(stream->residual);
    layer.attention_norm.forward(context, stream->update, normed, stream->residual, sum);
    stream->residual = sum;
  } else {
    layer.attention_norm.forward(context, stream->residual, normed);
  }
  stream->update = normed;
  context.spread_over_ranks(normed);
  return {normed, nullptr};
}

void leave_attention(nn::Context& context, const DecoderLayer& layer, const DecoderConfig& config,
                     const Tensor& heads, const LayerStream& stream, const LayerStream& out) {
  if (!out.update.present()) {
    layer.attention.output.forward(context, heads, out.residual, stream.residual);
    layer.mlp.forward(context, out.residual, out.residual, out.residual, &layer.ffn_norm);
    return;
  }
  // A norm of x, over its memory where that is free.
  const auto norm = [&](const nn::RmsNormLayer& norm_layer, const Tensor& x) {
    const Tensor y = context.over(x);
    norm_layer.forward(context, x, y);
    return y;
  };
  Tensor update = context.over(stream.update);
  layer.attention.output.forward(context, heads, update);
  context.sum_over_ranks(update);
  if (config.post_norms) update = norm(layer.post_attention_norm, update);
  const Tensor normed = context.over(update);
  layer.ffn_norm.forward(context, update, normed, stream.residual, out.residual);
  const Tensor inner = config.post_norms ? context.over(normed) : out.update;
  if (layer.is_moe) {
    layer.moe.forward(context, normed, inner);
  } else {
    context.spread_over_ranks(normed);
    layer.mlp.forward(context, normed, inner);
  }
  context.sum_over_ranks(inner);
  if (config.post_norms) layer.post_ffn_norm.forward(context, inner, out.update);
}

}  // namespace qiao
