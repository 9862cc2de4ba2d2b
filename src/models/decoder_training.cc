#include "models/decoder_training.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "models/decoder_checks.h"
#include "models/decoder_layers.h"
#include "models/router_balance.h"

namespace qiao {
namespace {

constexpr size_t kArenaAlignment = 64;
constexpr size_t kTouchedAtOnce = size_t{1} << 20;

}  // namespace

// As many to each, but for the last: memory is planned by the first's share of the largest batch.
Range head_rows(int64_t tokens, int rank, int size) {
  const int64_t each = (tokens + size - 1) / size, first = std::min(tokens, each * rank);
  return {first, std::min(each, tokens - first)};
}

struct DecoderTraining::State {
  const DecoderWeights& weights;
  const DecoderConfig& config;
  Backend& backend;
  Collectives* const trainers;  // null: one rank
  const PassNeeds needs;
  const int64_t most_tokens, most_documents;
  int64_t tokens = 0;  // of the last batch
  float temperature = 1.0f;

  std::vector<nn::AdapterRows> adapter_rows;  // all of them, where the decoder has an adapter: its first
  bool with_adapter = true;                   // in the last forward pass
  bool head_is_done = false;                  // its way back, too
  nn::AdapterDropout dropout;                 // of it

  Buffer arena;  // all of the memory
  // Nowhere (nor where nn::Context measures), at first.
  std::byte* base = reinterpret_cast<std::byte*>(uintptr_t{1} << 46);
  size_t used = 0;
  Tensor ids, positions, labels, starts;  // I32, of the largest batch
  std::vector<LayerStream> inputs;        // of each layer, and behind the last what the final norm reads
  Tensor hidden, hidden_gradient;         // [T, C]
  Tensor stream_gradient[2];              // [T, C]: of a layer's results, of its inputs
  Tensor logprob, log_sum_exp, dlogprob;  // [T]
  Tensor workspace;                       // of the loss
  Tensor scratch, gradients;              // of one layer
  std::vector<nn::RouterTap> routers;     // by layer, where their loads are evened out
  Tensor router_gradient;                 // of one layer
  RouterBalance balance;                  // of the last forward pass
  bool recomputes = false;
  std::vector<Tensor> kept;     // of each layer, where they are not computed again
  std::vector<nn::Tape> tapes;  // of the last forward pass, then
  std::vector<float> result;

  State(const Decoder& decoder, int64_t token_limit, int64_t document_limit,
        const PassNeeds& needs_of_batches)
      : weights(decoder.weights()),
        config(decoder.config()),
        backend(decoder.backend()),
        trainers(decoder.trainers()),
        needs(needs_of_batches),
        most_tokens(token_limit),
        most_documents(document_limit) {
    if (decoder.adapters() > 0) adapter_rows.push_back({0, 0, token_limit});
    if (needs.dropout) dropout.probability = 0.5f;  // as far as planning goes
  }

  Tensor make(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor tensor(base + used, dtype, shape);
    used += (static_cast<size_t>(tensor.bytes()) + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
    return tensor;
  }
  Tensor make_bytes(size_t bytes) {
    return make(DType::kU8, {static_cast<int64_t>(std::max(bytes, kArenaAlignment))});
  }

  void check(const Decoder& decoder) const;
  void plan(Recompute recompute, uint64_t free);
  void take_memory();
  LayerStream of_batch(const LayerStream& stream) const {
    return {stream.residual.slice(0, tokens), stream.update.slice(0, tokens)};
  }
  bool balances() const { return config.router_aux_loss_coef > 0; }
  nn::RouterTap tap_of(size_t layer) const;
  void run_layer(nn::Context& context, size_t layer, LayerStream in, const LayerStream& out) const;
  void record_layer(nn::Context& context, nn::Tape& tape, size_t layer) const;
  void walk_back(nn::Tape& tape, size_t layer, nn::ParameterGradients* parameters);
  void run_layers(const PackedBatch& batch);
  std::span<const float> result_of(const PackedBatch& batch);
  // Of these rows of the batch.
  TokenLogprob loss(const Range& rows) const;
  TokenLoss whole_loss(const Range& rows, nn::ParameterGradients* parameters) const;
  TokenLogprobBackward loss_back(const Range& rows, nn::ParameterGradients* parameters) const;
  // Calls `op` with this rank's rows; then all ranks have all rows of the results.
  template <class Op>
  void run_head(Op op, const std::vector<Tensor>& results);
  int64_t document_count = 0;
};

nn::RouterTap DecoderTraining::State::tap_of(size_t layer) const {
  if (!balances() || !weights.layers[layer].is_moe) return {};
  return {routers[layer].logits.slice(0, tokens), routers[layer].counts};
}

void DecoderTraining::State::run_layer(nn::Context& context, size_t number, LayerStream in,
                                       const LayerStream& out) const {
  const DecoderLayer& layer = weights.layers[number];
  if (with_adapter) context.set_adapter_rows(adapter_rows);
  context.set_adapter_dropout(dropout);
  context.set_collectives(trainers);
  context.set_router_tap(tap_of(number));
  if (number == 0) weights.embedding.forward(context, ids.slice(0, tokens), in.residual);
  const AttentionInput x = enter_attention(context, layer, number > 0, &in);
  const nn::AttentionLayer::Projections qkv =
      layer.attention.project(context, x.rows, positions.slice(0, tokens), x.norm);
  const Tensor heads = layer.attention.attend_packed(context, qkv, starts.slice(0, document_count + 1));
  leave_attention(context, layer, config, heads, in, out);
}

// Runs a layer on a tape, from its input to the next one's; behind the last also the final norm.
void DecoderTraining::State::record_layer(nn::Context& context, nn::Tape& tape, size_t layer) const {
  const auto on_tape = [&](const Tensor& tensor) {
    tape.add_block(tensor.data, static_cast<size_t>(tensor.bytes()));
  };
  context.record_on(tape);
  const LayerStream in = of_batch(inputs[layer]), out = of_batch(inputs[layer + 1]);
  for (const Tensor& tensor : {in.residual, in.update, out.residual, out.update}) on_tape(tensor);
  run_layer(context, layer, in, out);
  if (layer + 1 < weights.layers.size()) return;
  const Tensor normed = hidden.slice(0, tokens);
  on_tape(normed);
  const Tensor sum = context.take(DType::kF32, {tokens, config.hidden_size});
  weights.final_norm.forward(context, out.update, normed, out.residual, sum);
}

// The way back of what record_layer recorded. A layer's gradients lie in turn in one of two places.
void DecoderTraining::State::walk_back(nn::Tape& tape, size_t layer, nn::ParameterGradients* parameters) {
  const LayerStream in = of_batch(inputs[layer]), out = of_batch(inputs[layer + 1]);
  if (layer > 0) tape.place_gradient(in.update, stream_gradient[(layer + 1) % 2].slice(0, tokens), false);
  if (layer + 1 == weights.layers.size()) {
    tape.place_gradient(hidden.slice(0, tokens), hidden_gradient.slice(0, tokens), true);
  } else {
    const Tensor above = stream_gradient[layer % 2].slice(0, tokens);
    tape.place_gradient(out.update, above, true);
    tape.place_gradient(out.residual, above, true);
  }
  if (parameters != nullptr && balance.slope() != 0 && weights.layers[layer].is_moe) {
    const nn::RouterTap tap = tap_of(layer);
    const Tensor gradient = router_gradient.slice(0, tokens);
    balance.gradient(backend, tap.logits, gradient);
    tape.add_gradient(tap.logits, gradient);
  }
  tape.backward(parameters);
}

TokenLogprob DecoderTraining::State::loss(const Range& rows) const {
  TokenLogprob op;
  op.x = hidden.slice(rows.first, rows.count);
  op.weight = weights.head.pieces.front().weight.get();
  op.compute = weights.head.pieces.front().compute;
  op.labels = labels.slice(rows.first, rows.count);
  op.soft_cap = config.final_logit_softcapping;
  op.temperature = temperature;
  op.logprob = logprob.slice(rows.first, rows.count);
  op.log_sum_exp = log_sum_exp.slice(rows.first, rows.count);
  op.workspace = workspace;
  return op;
}

TokenLogprobBackward DecoderTraining::State::loss_back(const Range& rows,
                                                       nn::ParameterGradients* parameters) const {
  return whole_loss(rows, parameters).backward();
}

TokenLoss DecoderTraining::State::whole_loss(const Range& rows, nn::ParameterGradients* parameters) const {
  const TokenLogprob forward = loss(rows);
  TokenLoss op;
  op.x = forward.x;
  op.weight = forward.weight;
  op.labels = forward.labels;
  op.soft_cap = forward.soft_cap;
  op.temperature = forward.temperature;
  op.compute = forward.compute;
  op.dlogprob = dlogprob.slice(rows.first, rows.count);
  op.logprob = forward.logprob;
  op.log_sum_exp = forward.log_sum_exp;
  op.dx = hidden_gradient.slice(rows.first, rows.count);
  if (parameters != nullptr) op.dw = parameters->of(*op.weight);
  op.workspace = workspace;
  return op;
}

template <class Op>
void DecoderTraining::State::run_head(Op op, const std::vector<Tensor>& results) {
  if (trainers == nullptr) return op(Range{0, tokens});
  const auto rows_of = [&](int rank) { return head_rows(tokens, rank, trainers->size()); };
  if (const Range own = rows_of(trainers->rank()); own.count > 0) op(own);
  for (const Tensor& result : results) {
    for (int rank = 0; rank < trainers->size(); ++rank) {
      const Range rows = rows_of(rank);
      const Tensor part = result.slice(rows.first, rows.count);
      if (rows.count > 0) trainers->broadcast(part, rank, part);
    }
  }
}

// Lays everything out from `base` on.
void DecoderTraining::State::plan(Recompute recompute, uint64_t free) {
  used = 0;
  inputs.clear();
  kept.clear();
  tokens = most_tokens;
  document_count = most_documents;
  const int64_t width = config.hidden_size;
  for (Tensor* indices : {&ids, &positions, &labels}) *indices = make(DType::kI32, {tokens});
  starts = make(DType::kI32, {most_documents + 1});
  for (size_t i = 0; i <= weights.layers.size(); ++i) {
    const Tensor residual = make(DType::kF32, {tokens, width});
    inputs.push_back({residual, make(DType::kF32, {tokens, width})});
  }
  for (Tensor* tensor : {&hidden, &hidden_gradient, &stream_gradient[0], &stream_gradient[1]})
    *tensor = make(DType::kF32, {tokens, width});
  for (Tensor* tensor : {&logprob, &log_sum_exp, &dlogprob}) *tensor = make(DType::kF32, {tokens});
  routers.assign(balances() ? weights.layers.size() : 0, {});
  for (size_t layer = 0; layer < routers.size(); ++layer) {
    if (!weights.layers[layer].is_moe) continue;
    const Tensor logits = make(DType::kF32, {tokens, config.num_experts});
    routers[layer] = {logits, make(DType::kI32, {config.num_experts})};
  }
  if (balances()) router_gradient = make(DType::kF32, {tokens, config.num_experts});
  const Range rows = head_rows(tokens, 0, trainers == nullptr ? 1 : trainers->size());  // the most
  TokenLogprobBackward back = loss_back(rows, nullptr);
  back.dw = Tensor(hidden.data, DType::kF32, {config.vocabulary_size, width});  // its shape alone is read
  TokenLoss both = whole_loss(rows, nullptr);
  both.dw = back.dw;
  const size_t loss_bytes =
      std::max(backend.workspace_bytes(loss(rows)),
               needs.slopes_first ? backend.workspace_bytes(both) : backend.workspace_bytes(back));
  workspace = make_bytes(loss_bytes);

  size_t scratch_bytes = 0, gradient_bytes = 0, all_bytes = 0;
  std::vector<size_t> layer_bytes;
  for (size_t layer = 0; layer < weights.layers.size(); ++layer) {
    nn::Context forward(backend);
    forward.keep_inputs();
    run_layer(forward, layer, inputs[layer], inputs[layer + 1]);
    nn::Context recording(backend);
    nn::Tape tape(backend);
    record_layer(recording, tape, layer);
    walk_back(tape, layer, nullptr);
    scratch_bytes = std::max({scratch_bytes, forward.peak(), recording.peak()});
    gradient_bytes = std::max(gradient_bytes, tape.peak());
    layer_bytes.push_back(recording.peak());
    all_bytes += recording.peak();
  }
  gradients = make_bytes(gradient_bytes);
  recomputes =
      recompute == Recompute::kOn || (recompute == Recompute::kAuto && free != 0 && all_bytes > free / 4);
  if (recomputes) {
    scratch = make_bytes(scratch_bytes);
  } else {
    for (const size_t bytes : layer_bytes) kept.push_back(make_bytes(bytes));
    tapes.reserve(kept.size());
  }
}

void DecoderTraining::State::take_memory() {
  arena = backend.allocate(used);
  // At once: what a run was told it takes is taken, whether or not its batches fill it.
  const std::vector<std::byte> zeros(std::min(used, kTouchedAtOnce));
  for (size_t at = 0; at < used; at += zeros.size()) {
    backend.upload(static_cast<std::byte*>(arena.data()) + at, zeros.data(),
                   std::min(zeros.size(), used - at));
  }
  base = static_cast<std::byte*>(arena.data());
  plan(recomputes ? Recompute::kOn : Recompute::kOff, 0);
}

void DecoderTraining::State::check(const Decoder& decoder) const {
  if (most_tokens < 1 || most_documents < 1)
    throw_error(ErrorKind::kInvalidInput, "packed batch: room for {} tokens in {} documents", most_tokens,
                most_documents);
  if (decoder.weights().head.pieces.size() != 1 || decoder.weights().head.bias.tensor.present())
    throw_error(ErrorKind::kUnsupported, "a head in several pieces or with a bias cannot be trained");
}

DecoderTraining::DecoderTraining(const Decoder& decoder, int64_t tokens, int64_t documents,
                                 Recompute recompute, const PassNeeds& needs)
    : state_(std::make_unique<State>(decoder, tokens, documents, needs)) {
  state_->check(decoder);
  state_->plan(recompute, decoder.backend().describe().free_bytes);
  state_->take_memory();
}

DecoderTraining::Plan DecoderTraining::plan(const Decoder& decoder, int64_t tokens, int64_t documents,
                                            Recompute recompute, uint64_t free, const PassNeeds& needs) {
  State state(decoder, tokens, documents, needs);
  state.check(decoder);
  state.plan(recompute, free);
  return {state.used, state.recomputes};
}

DecoderTraining::~DecoderTraining() = default;

size_t DecoderTraining::bytes() const { return state_->arena.bytes(); }
bool DecoderTraining::recomputes() const { return state_->recomputes; }

// From the batch to what the head reads.
void DecoderTraining::State::run_layers(const PackedBatch& batch) {
  check_packed(batch, most_tokens, most_documents, config.vocabulary_size);
  tokens = static_cast<int64_t>(batch.tokens.size());
  document_count = static_cast<int64_t>(batch.starts.size()) - 1;
  for (nn::AdapterRows& rows : adapter_rows) rows.count = tokens;
  temperature = batch.temperature;
  dropout = batch.dropout;
  backend.upload(ids.data, batch.tokens.data(), batch.tokens.size_bytes());
  backend.upload(positions.data, batch.positions.data(), batch.positions.size_bytes());
  backend.upload(labels.data, batch.labels.data(), batch.labels.size_bytes());
  backend.upload(starts.data, batch.starts.data(), batch.starts.size_bytes());
  tapes.clear();
  for (size_t layer = 0; layer < weights.layers.size(); ++layer) {
    const Tensor& memory = recomputes ? scratch : kept[layer];
    nn::Context context(backend, memory.data, static_cast<size_t>(memory.bytes()));
    if (recomputes) {
      context.keep_inputs();
      run_layer(context, layer, of_batch(inputs[layer]), of_batch(inputs[layer + 1]));
    } else {
      tapes.emplace_back(backend, gradients.data, static_cast<size_t>(gradients.bytes()));
      record_layer(context, tapes.back(), layer);
    }
  }
  balance = RouterBalance(balances() ? config.num_experts : 0);
  for (size_t layer = 0; layer < routers.size(); ++layer)
    if (const nn::RouterTap tap = tap_of(layer); tap.logits.present())
      balance.add(backend, tap.logits, tap.counts);
  if (!recomputes) return;
  const LayerStream last = of_batch(inputs.back());
  nn::Context context(backend, scratch.data, static_cast<size_t>(scratch.bytes()));
  weights.final_norm.forward(context, last.update, hidden.slice(0, tokens), last.residual);
}

std::span<const float> DecoderTraining::State::result_of(const PackedBatch& batch) {
  result.resize(batch.tokens.size());
  backend.download(result.data(), logprob.data, result.size() * sizeof(float));
  return result;
}

std::span<const float> DecoderTraining::forward(const PackedBatch& batch, bool with_adapter) {
  State& s = *state_;
  s.with_adapter = with_adapter;
  s.head_is_done = false;
  s.run_layers(batch);
  s.run_head([&](const Range& rows) { s.backend.token_logprob(s.loss(rows)); }, {s.logprob});
  return s.result_of(batch);
}

std::span<const float> DecoderTraining::forward(const PackedBatch& batch, std::span<const float> dlogprob,
                                                nn::ParameterGradients& gradients) {
  State& s = *state_;
  s.with_adapter = true;
  s.run_layers(batch);
  QIAO_ASSERT(std::ssize(dlogprob) == s.tokens);
  s.backend.upload(s.dlogprob.data, dlogprob.data(), dlogprob.size_bytes());
  s.run_head([&](const Range& rows) { s.backend.token_loss(s.whole_loss(rows, &gradients)); },
             {s.logprob, s.hidden_gradient});
  s.head_is_done = true;
  return s.result_of(batch);
}

double DecoderTraining::imbalance() const { return state_->balance.value(); }

void DecoderTraining::backward(std::span<const float> dlogprob, nn::ParameterGradients& gradients,
                               double dimbalance) {
  State& s = *state_;
  s.balance.set_slope(dimbalance);
  QIAO_ASSERT(std::ssize(dlogprob) == s.tokens);
  QIAO_ASSERT(s.head_is_done == s.needs.slopes_first);
  if (!s.head_is_done) {
    s.backend.upload(s.dlogprob.data, dlogprob.data(), dlogprob.size_bytes());
    s.run_head([&](const Range& rows) { s.backend.token_logprob_backward(s.loss_back(rows, &gradients)); },
               {s.hidden_gradient});
  }
  for (size_t layer = s.weights.layers.size(); layer-- > 0;) {
    if (!recomputes()) {
      QIAO_ASSERT(s.tapes.size() == s.kept.size());
      s.walk_back(s.tapes[layer], layer, &gradients);
      continue;
    }
    nn::Context context(s.backend, s.scratch.data, static_cast<size_t>(s.scratch.bytes()));
    nn::Tape tape(s.backend, s.gradients.data, static_cast<size_t>(s.gradients.bytes()));
    s.record_layer(context, tape, layer);
    s.walk_back(tape, layer, &gradients);
  }
  s.tapes.clear();
}

}  // namespace qiao
