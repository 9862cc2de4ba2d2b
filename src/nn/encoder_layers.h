// Layers of encoders: what nn/layers.h lacks for them.
#pragma once

#include "nn/layers.h"

namespace qiao::nn {

struct LayerNormLayer {
  Parameter gamma, beta;  // [C]
  float epsilon = 1e-12f;
  // y = norm(x + residual); residual may be absent, y may alias either.
  void forward(Context& context, const Tensor& x, const Tensor& y, const Tensor& residual = {}) const;
};

// Every token of a sequence sees every other one of it; sequences are packed one after the other.
struct SelfAttentionLayer {
  LinearLayer qkv;     // [3 * H * D, C]: query, key, value
  LinearLayer output;  // [C, H * D]
  int64_t heads = 0, head_dim = 0;
  Tensor bias;  // of scores, by distance: F32 [H, 2M - 1], see AttentionVarlen; or absent
  // y = attention(x) + x. starts is I32 [S + 1]; y does not overlap x.
  void forward(Context& context, const Tensor& x, const Tensor& starts, const Tensor& y) const;
};

// down(activation(up x))
struct FeedForwardLayer {
  LinearLayer up;    // [F, C]
  LinearLayer down;  // [C, F]
  Activation activation = Activation::kGelu;
  // y = down(activation(up x)) + x; y does not overlap x.
  void forward(Context& context, const Tensor& x, const Tensor& y) const;
};

}  // namespace qiao::nn
