#include "nn/encoder_layers.h"

#include <cmath>

namespace qiao::nn {

void LayerNormLayer::forward(Context& context, const Tensor& x, const Tensor& y,
                             const Tensor& residual) const {
  LayerNorm op;
  op.x = x;
  op.residual = residual;
  op.gamma = gamma.tensor;
  op.beta = beta.tensor;
  op.epsilon = epsilon;
  op.y = y;
  context.layer_norm(op);
}

void SelfAttentionLayer::forward(Context& context, const Tensor& x, const Tensor& starts,
                                 const Tensor& y) const {
  const Context::Scope scope(context);
  const int64_t tokens = x.shape[0], width = heads * head_dim;
  const Tensor rows = context.take(DType::kF32, {tokens, 3 * width});
  const Tensor mixed = context.take(DType::kF32, {tokens, width});
  qkv.forward(context, x, rows);
  AttentionVarlen op;
  op.q = rows.narrow(1, 0, width).split_last(heads);
  op.k = rows.narrow(1, width, width).split_last(heads);
  op.v = rows.narrow(1, 2 * width, width).split_last(heads);
  op.starts = starts;
  op.bias = bias;
  op.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  op.out = mixed.split_last(heads);
  context.attention_varlen(op);
  output.forward(context, mixed, y, x);
}

void FeedForwardLayer::forward(Context& context, const Tensor& x, const Tensor& y) const {
  const Context::Scope scope(context);
  const Tensor inner = context.take(DType::kF32, {x.shape[0], up.rows()});
  up.forward(context, x, inner, {}, activation);
  down.forward(context, inner, y, x);
}

}  // namespace qiao::nn
