// Layers, written once from ops. Each owns its weights, is made by whoever reads them (models/weights.cc) and
// runs through a Context. All activations are F32.
#pragma once

#include <memory>
#include <vector>

#include "nn/context.h"

namespace qiao::nn {

// A small F32 tensor on the chip: a norm's gamma, a bias, rotary frequencies. Absent where default-made.
struct Parameter {
  Buffer buffer;
  Tensor tensor;
  // Copies `values` to the chip.
  static Parameter upload(Backend& backend, const std::vector<float>& values);
};

// A weight, or one expert-wise weight, and how it computes. Rows [first_row, first_row + weight->rows()).
struct WeightPiece {
  std::shared_ptr<Weight> weight;
  Compute compute = Compute::kF32;
  int64_t first_row = 0;
};

// What one adapter adds to a layer: y += B (A x), for each of the layer's parts that it has (LoRA, Hu et al.
// 2021). All in kF32. Default-made: nothing.
struct LowRankAdapter {
  struct Part {
    std::shared_ptr<Weight> b;  // [rows, r], its scale in it
    int64_t first_row = 0;      // of y
    int64_t first_rank = 0;     // of A's rows
  };
  std::shared_ptr<Weight> a;  // [R, K]: the parts' A, one below the other
  std::vector<Part> parts;
  uint32_t number = 0;        // of the adapter's: its masks are its own
  uint32_t first_column = 0;  // of the whole A's, where several ranks have a part of them each
  // x goes through the context's dropout first.
  void forward(Context& context, const Tensor& x, const Tensor& y) const;

 private:
  Tensor dropped(Context& context, const Tensor& x) const;
};

struct RmsNormLayer;

// y = x W^T + bias, and on the rows of the context's adapters what they add. One piece where the compute
// policy lets its parts share a handle (a fused QKV), else one for each.
struct LinearLayer {
  std::vector<WeightPiece> pieces;
  Parameter bias;                        // [N]
  std::vector<LowRankAdapter> adapters;  // by their number; as many as the last that changes this layer needs
  int64_t rows() const;

  // residual may be absent, and y may alias it. `norm` norms x first, by the product itself where nothing
  // else reads the normed rows.
  void forward(Context& context, const Tensor& x, const Tensor& y, const Tensor& residual = {},
               Activation activation = Activation::kNone, float soft_cap = 0.0f,
               const RmsNormLayer* norm = nullptr) const;

  // y[t, f] = activation(z[t, f]) * z[t, F + f], z what forward gives, of N = 2F: y [T, F]. In one call where
  // nobody needs z: it is of one piece, no tape records and no adapter adds to it. `norm` as forward's.
  void forward_gated(Context& context, const Tensor& x, const Tensor& y, Activation activation,
                     const RmsNormLayer* norm = nullptr) const;

 private:
  // Nothing but one product reads x, and nothing adds to what it makes.
  bool alone(const Context& context) const;
  void add_adapters(Context& context, const Tensor& x, const Tensor& y) const;
};

// W[E, N, K]: rows of x sorted by expert.
struct GroupedLinearLayer {
  std::vector<WeightPiece> pieces;
  int64_t rows() const;
  void forward(Context& context, const Tensor& x, const Tensor& counts, const Tensor& y) const;
  // As LinearLayer's.
  void forward_gated(Context& context, const Tensor& x, const Tensor& counts, const Tensor& y,
                     Activation activation) const;
};

struct EmbeddingLayer {
  std::shared_ptr<Weight> table;  // [V, C]
  float scale = 1.0f;
  bool learns = true;  // in training; of a table that several ranks' gradients are summed for, on one of them
  void forward(Context& context, const Tensor& ids, const Tensor& y) const;
};

struct RmsNormLayer {
  Parameter gamma;
  float gamma_offset = 0.0f;
  float epsilon = 1e-6f;
  // y = norm(x + residual), residual_out = x + residual; both may be absent. y may alias x.
  void forward(Context& context, const Tensor& x, const Tensor& y, const Tensor& residual = {},
               const Tensor& residual_out = {}) const;
  // For an op that norms by itself.
  RmsNorm inside() const;
};

// A step's indices on the chip; see AttentionPaged.
struct StepIndices {
  Tensor positions, slots, page_table, lengths, query_starts;
};

// Rotary frequencies on the chip, shared by layers; absent (no rotation) where default-made.
struct RotaryTable {
  Parameter inverse_frequencies;  // [R / 2]
  float scale = 1.0f;
  Rope::Layout layout = Rope::Layout::kHalf;
};

struct AttentionLayer {
  LinearLayer qkv;     // [(H + 2G) * D, C]: query, key, value
  LinearLayer output;  // [C, H * D]
  enum class QkNorm : uint8_t { kNone, kBeforeRope, kAfterRope };
  QkNorm qk_norm = QkNorm::kNone;
  RmsNormLayer q_norm, k_norm;          // [D]
  const RotaryTable* rotary = nullptr;  // nullptr: none
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t window = 0;  // 0: unlimited
  float scale = 1.0f, soft_cap = 0.0f;
  Compute compute = Compute::kF32;  // of attend and attend_packed, there and back

  struct Projections {
    Tensor q, k, v;  // [T, H, D], [T, G, D] twice
  };
  // Projects x [T, C], first normed by `norm` if that is given; heads normed and rotated, in the context's
  // scratch memory.
  Projections project(Context& context, const Tensor& x, const Tensor& positions,
                      const RmsNormLayer* norm = nullptr) const;
  // The same, but keys and values go to the pages alone. Returns the queries [T, H, D].
  Tensor keep(Context& context, const Tensor& x, const StepIndices& step, KvPages& pages,
              const RmsNormLayer* norm = nullptr) const;
  // Attends over the pages. Returns [T, H * D].
  Tensor attend(Context& context, const Tensor& q, const StepIndices& step, const KvPages& pages) const;
  // Attends over the projections alone: whole sequences, one behind the other, from `starts` [S + 1] on. The
  // same bits as over F32 pages, or as over BF16 pages where a chip computes kBF16 (AttentionVarlen).
  Tensor attend_packed(Context& context, const Projections& projections, const Tensor& starts) const;

 private:
  Projections project_alone(Context& context, const Tensor& x, const RmsNormLayer* norm) const;
};

// down(activation(gate x) * (up x)); `norm`, if given, norms x first.
struct MlpLayer {
  LinearLayer gate_up;  // [2F, C]
  LinearLayer down;     // [C, F]
  Activation activation = Activation::kSilu;
  // y may alias x and residual.
  void forward(Context& context, const Tensor& x, const Tensor& y, const Tensor& residual = {},
               const RmsNormLayer* norm = nullptr) const;
};

// Mixture of experts, with an always-on expert where `shared` has weights.
struct MoeLayer {
  LinearLayer router;          // [E, C]
  GroupedLinearLayer gate_up;  // [E, 2F, C]
  GroupedLinearLayer down;     // [E, C, F]
  MlpLayer shared;
  int64_t experts = 0, experts_per_token = 0;
  MoeRoute::Kind kind = MoeRoute::Kind::kSoftmax;
  bool normalize = false;
  float scale = 1.0f;
  Activation activation = Activation::kSilu;
  // y may alias x.
  void forward(Context& context, const Tensor& x, const Tensor& y) const;
};

}  // namespace qiao::nn
