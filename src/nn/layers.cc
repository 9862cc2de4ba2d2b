#include "nn/layers.h"

#include <algorithm>

#include "base/error.h"

namespace qiao::nn {
namespace {

// z [T, 2F] becomes y [T, F].
void gate(Context& context, const Tensor& z, const Tensor& y, Activation activation) {
  GatedActivation op;
  op.x = z;
  op.activation = activation;
  op.y = y;
  context.gated_activation(op);
}

}  // namespace

Parameter Parameter::upload(Backend& backend, const std::vector<float>& values) {
  Parameter parameter;
  const size_t bytes = values.size() * sizeof(float);
  parameter.buffer = backend.allocate(bytes);
  backend.upload(parameter.buffer.data(), values.data(), bytes);
  parameter.tensor = Tensor(parameter.buffer.data(), DType::kF32, {static_cast<int64_t>(values.size())});
  return parameter;
}

Tensor LowRankAdapter::dropped(Context& context, const Tensor& x) const {
  const AdapterDropout& dropout = context.adapter_dropout();
  if (dropout.probability == 0) return x;
  Dropout op;
  op.x = x;
  op.y = context.take(DType::kF32, {x.shape[0], x.shape[1]});
  op.probability = dropout.probability;
  op.seed = dropout.seed;
  op.stream = number;
  op.first_row = dropout.first_row;
  op.first_column = first_column;
  context.dropout(op);
  return op.y;
}

void LowRankAdapter::forward(Context& context, const Tensor& x, const Tensor& y) const {
  if (parts.empty()) return;
  const Context::Scope scope(context);
  const Tensor entering = dropped(context, x);
  const Tensor inner = context.take(DType::kF32, {x.shape[0], a->rows()});
  Linear down;
  down.x = entering;
  down.weight = a.get();
  down.y = inner;
  context.linear(down);
  for (const Part& part : parts) {
    Linear up;
    up.x = inner.narrow(1, part.first_rank, part.b->columns());
    up.weight = part.b.get();
    up.y = y.narrow(1, part.first_row, part.b->rows());
    up.residual = up.y;
    context.linear(up);
  }
}

int64_t LinearLayer::rows() const { return pieces.back().first_row + pieces.back().weight->rows(); }
int64_t GroupedLinearLayer::rows() const { return pieces.back().first_row + pieces.back().weight->rows(); }

void LinearLayer::forward(Context& context, const Tensor& x, const Tensor& y, const Tensor& residual,
                          Activation activation, float soft_cap, const RmsNormLayer* norm) const {
  if (norm != nullptr && !alone(context)) {
    const Context::Scope scope(context);
    const Tensor normed = context.take(DType::kF32, {x.shape[0], x.shape[1]});
    norm->forward(context, x, normed);
    return forward(context, normed, y, residual, activation, soft_cap);
  }
  for (const WeightPiece& piece : pieces) {
    const int64_t rows = piece.weight->rows();
    Linear op;
    op.x = x;
    if (norm != nullptr) op.norm = norm->inside();
    op.weight = piece.weight.get();
    if (bias.tensor.present()) op.bias = bias.tensor.slice(piece.first_row, rows);
    if (residual.present()) op.residual = residual.narrow(1, piece.first_row, rows);
    op.activation = activation;
    op.soft_cap = soft_cap;
    op.compute = piece.compute;
    op.y = y.narrow(1, piece.first_row, rows);
    context.linear(op);
  }
  if (adapters.empty()) return;
  QIAO_ASSERT(activation == Activation::kNone);
  add_adapters(context, x, y);
}

void LinearLayer::forward_gated(Context& context, const Tensor& x, const Tensor& y, Activation activation,
                                const RmsNormLayer* norm) const {
  const Context::Scope scope(context);
  if (!alone(context)) {
    const Tensor z = context.take(DType::kF32, {x.shape[0], rows()});
    forward(context, x, z, {}, Activation::kNone, 0, norm);
    return gate(context, z, y, activation);
  }
  Linear op;
  op.x = x;
  if (norm != nullptr) op.norm = norm->inside();
  op.weight = pieces.front().weight.get();
  op.bias = bias.tensor;
  op.gated = true;
  op.activation = activation;
  op.compute = pieces.front().compute;
  op.y = y;
  context.linear(op);
}

bool LinearLayer::alone(const Context& context) const {
  if (pieces.size() > 1 || context.records()) return false;
  if (context.measuring()) return adapters.empty();  // any step may be of an adapter
  return std::ranges::none_of(context.adapter_rows(), [&](const AdapterRows& rows) {
    const auto index = static_cast<size_t>(rows.adapter);
    return index < adapters.size() && !adapters[index].parts.empty();
  });
}

void LinearLayer::add_adapters(Context& context, const Tensor& x, const Tensor& y) const {
  if (context.measuring()) {  // any step may be of any one adapter alone
    for (const LowRankAdapter& adapter : adapters) adapter.forward(context, x, y);
    return;
  }
  for (const AdapterRows& rows : context.adapter_rows()) {
    const auto index = static_cast<size_t>(rows.adapter);
    if (index >= adapters.size()) continue;
    adapters[index].forward(context, x.slice(rows.first, rows.count), y.slice(rows.first, rows.count));
  }
}

void GroupedLinearLayer::forward(Context& context, const Tensor& x, const Tensor& counts,
                                 const Tensor& y) const {
  for (const WeightPiece& piece : pieces) {
    GroupedLinear op;
    op.x = x;
    op.weight = piece.weight.get();
    op.counts = counts;
    op.compute = piece.compute;
    op.y = y.narrow(1, piece.first_row, piece.weight->rows());
    context.grouped_linear(op);
  }
}

void GroupedLinearLayer::forward_gated(Context& context, const Tensor& x, const Tensor& counts,
                                       const Tensor& y, Activation activation) const {
  const Context::Scope scope(context);
  if (pieces.size() > 1 || context.records()) {
    const Tensor z = context.take(DType::kF32, {x.shape[0], rows()});
    forward(context, x, counts, z);
    return gate(context, z, y, activation);
  }
  GroupedLinear op;
  op.x = x;
  op.weight = pieces.front().weight.get();
  op.counts = counts;
  op.gated = true;
  op.activation = activation;
  op.compute = pieces.front().compute;
  op.y = y;
  context.grouped_linear(op);
}

void EmbeddingLayer::forward(Context& context, const Tensor& ids, const Tensor& y) const {
  Gather op;
  op.table = table.get();
  op.ids = ids;
  op.scale = scale;
  op.out = y;
  context.gather(op, learns);
}

void RmsNormLayer::forward(Context& context, const Tensor& x, const Tensor& y, const Tensor& residual,
                           const Tensor& residual_out) const {
  AddRmsNorm op;
  op.x = x;
  op.residual = residual;
  op.gamma = gamma.tensor;
  op.gamma_offset = gamma_offset;
  op.epsilon = epsilon;
  op.y = y;
  op.residual_out = residual_out;
  context.add_rms_norm(op);
}

RmsNorm RmsNormLayer::inside() const {
  return {.present = true, .gamma = gamma.tensor, .gamma_offset = gamma_offset, .epsilon = epsilon};
}

AttentionLayer::Projections AttentionLayer::project_alone(Context& context, const Tensor& x,
                                                          const RmsNormLayer* norm) const {
  const Tensor rows = context.take(DType::kF32, {x.shape[0], (heads + 2 * kv_heads) * head_dim});
  qkv.forward(context, x, rows, {}, Activation::kNone, 0, norm);
  Projections made;
  made.q = rows.narrow(1, 0, heads * head_dim).split_last(heads);
  made.k = rows.narrow(1, heads * head_dim, kv_heads * head_dim).split_last(kv_heads);
  made.v = rows.narrow(1, (heads + kv_heads) * head_dim, kv_heads * head_dim).split_last(kv_heads);
  return made;
}

AttentionLayer::Projections AttentionLayer::project(Context& context, const Tensor& x,
                                                    const Tensor& positions, const RmsNormLayer* norm) const {
  Projections made = project_alone(context, x, norm);
  const auto normalize = [&] {
    const Tensor q = context.over(made.q), k = context.over(made.k);
    q_norm.forward(context, made.q, q);
    k_norm.forward(context, made.k, k);
    made.q = q;
    made.k = k;
  };
  if (qk_norm == QkNorm::kBeforeRope) normalize();
  if (rotary != nullptr) {
    Rope op;
    op.q = made.q;
    op.k = made.k;
    op.positions = positions;
    op.inverse_frequencies = rotary->inverse_frequencies.tensor;
    op.layout = rotary->layout;
    op.scale = rotary->scale;
    context.rope(op);
  }
  if (qk_norm == QkNorm::kAfterRope) normalize();
  return made;
}

Tensor AttentionLayer::keep(Context& context, const Tensor& x, const StepIndices& step, KvPages& pages,
                            const RmsNormLayer* norm) const {
  const Projections made = project_alone(context, x, norm);
  RopeKvWrite op;
  op.q = made.q;
  op.k = made.k;
  op.v = made.v;
  if (qk_norm != QkNorm::kNone) op.q_norm = q_norm.inside(), op.k_norm = k_norm.inside();
  op.norms_after = qk_norm == QkNorm::kAfterRope;
  if (rotary != nullptr) {
    op.positions = step.positions;
    op.inverse_frequencies = rotary->inverse_frequencies.tensor;
    op.layout = rotary->layout;
    op.scale = rotary->scale;
  }
  op.slots = step.slots;
  op.pages = &pages;
  context.rope_kv_write(op);
  return made.q;
}

Tensor AttentionLayer::attend(Context& context, const Tensor& q, const StepIndices& step,
                              const KvPages& pages) const {
  const Tensor out = context.take(DType::kF32, {q.shape[0], heads * head_dim});
  AttentionPaged op;
  op.q = q;
  op.pages = &pages;
  op.page_table = step.page_table;
  op.lengths = step.lengths;
  op.query_starts = step.query_starts;
  op.window = window;
  op.scale = scale;
  op.soft_cap = soft_cap;
  op.compute = compute;
  op.out = out.split_last(heads);
  context.attention_paged(op);
  return out;
}

Tensor AttentionLayer::attend_packed(Context& context, const Projections& projections,
                                     const Tensor& starts) const {
  const Tensor out = context.take(DType::kF32, {projections.q.shape[0], heads * head_dim});
  AttentionVarlen op;
  op.q = projections.q;
  op.k = projections.k;
  op.v = projections.v;
  op.starts = starts;
  op.causal = true;
  op.window = window;
  op.scale = scale;
  op.soft_cap = soft_cap;
  op.compute = compute;
  op.out = out.split_last(heads);
  context.attention_varlen(op);
  return out;
}

void MlpLayer::forward(Context& context, const Tensor& x, const Tensor& y, const Tensor& residual,
                       const RmsNormLayer* norm) const {
  const Context::Scope scope(context);
  const Tensor inner = context.take(DType::kF32, {x.shape[0], gate_up.rows() / 2});
  gate_up.forward_gated(context, x, inner, activation, norm);
  down.forward(context, inner, y, residual);
}

void MoeLayer::forward(Context& context, const Tensor& x, const Tensor& y) const {
  const Context::Scope scope(context);
  const int64_t tokens = x.shape[0], width = x.shape[1], places = tokens * experts_per_token;
  const RouterTap& tap = context.router_tap();
  const Tensor logits =
      tap.logits.present() ? context.given(tap.logits) : context.take(DType::kF32, {tokens, experts});
  router.forward(context, x, logits);
  MoeRoute route;
  route.logits = logits;
  route.kind = kind;
  route.normalize = normalize;
  route.scale = scale;
  route.ids = context.take(DType::kI32, {tokens, experts_per_token});
  route.weights = context.take(DType::kF32, {tokens, experts_per_token});
  context.moe_route(route);

  // The router is on every rank, the experts are spread: so is what picks are weighed by.
  context.spread_over_ranks(route.weights);
  context.spread_over_ranks(x);
  MoePermute permute;
  permute.x = x;
  permute.ids = route.ids;
  permute.sorted = context.take(DType::kF32, {places, width});
  permute.counts = tap.counts.present() ? tap.counts : context.take(DType::kI32, {experts});
  permute.places = context.take(DType::kI32, {tokens, experts_per_token});
  context.moe_permute(permute);

  const Tensor outputs = context.over(permute.sorted);  // of the experts
  Tensor always;                                        // of the shared one
  if (!shared.down.pieces.empty()) {
    always = context.take(DType::kF32, {tokens, width});
    shared.forward(context, x, always);
  }
  {
    const Context::Scope inside(context);
    const Tensor inner = context.take(DType::kF32, {places, gate_up.rows() / 2});
    gate_up.forward_gated(context, permute.sorted, permute.counts, inner, activation);
    down.forward(context, inner, permute.counts, outputs);
  }
  MoeCombine combine;
  combine.sorted = outputs;
  combine.places = permute.places;
  combine.weights = route.weights;
  combine.residual = always;
  combine.y = y;
  context.moe_combine(combine);
}

}  // namespace qiao::nn
