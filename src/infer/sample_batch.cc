#include "infer/sample_batch.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

namespace qiao {
namespace {

constexpr int64_t kResultAlignment = 64;
constexpr size_t kLeastBytes = 64;

float logprob_temperature(const GenerationRequest& request) {
  const float temperature = sample_row(request.sampling, 0, 0).temperature;
  return request.logprobs_at_temperature && temperature > 0 ? temperature : 1.0f;
}

}  // namespace

SampleBatch::Sizes SampleBatch::planned(const Backend& backend, int64_t vocabulary, int64_t rows,
                                        int64_t top) {
  alignas(64) static int32_t nothing = 0;  // shapes alone
  Sample op;
  op.logits = Tensor(&nothing, DType::kF32, {rows, vocabulary});
  if (top > 0) op.top_ids = Tensor(&nothing, DType::kI32, {rows, std::min(top, vocabulary)});
  Sizes sizes{};
  sizes[kRows] = static_cast<size_t>(rows) * sizeof(SampleRow);
  sizes[kMask] = static_cast<size_t>(rows * ((vocabulary + 31) / 32)) * sizeof(int32_t);
  // Ids and log-probabilities, and both of the likeliest, each from a place of its own on.
  sizes[kResults] = static_cast<size_t>((2 + 2 * top) * rows) * 4 + 4 * kResultAlignment;
  sizes[kWorkspace] = backend.workspace_bytes(op);
  return sizes;
}

size_t SampleBatch::planned_bytes(const Backend& backend, int64_t vocabulary, int64_t rows, int64_t top) {
  const Sizes sizes = planned(backend, vocabulary, rows, top);
  return std::accumulate(sizes.begin(), sizes.end(), size_t{0});
}

SampleBatch::SampleBatch(Backend& backend, int64_t vocabulary, int64_t rows, int64_t top)
    : backend_(backend), vocabulary_(vocabulary) {
  const Sizes sizes = planned(backend, vocabulary, rows, top);
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] > 0) device_[i] = backend.allocate(std::max(sizes[i], kLeastBytes));
}

void SampleBatch::clear() {
  rows_.clear();
  history_ids_.clear();
  history_counts_.clear();
  bias_ids_.clear();
  bias_values_.clear();
  history_offsets_.assign(1, 0);
  bias_offsets_.assign(1, 0);
}

void SampleBatch::add_count(TokenId id, int32_t count) {
  if (id >= vocabulary_) return;
  history_ids_.push_back(id);
  history_counts_.push_back(count);
}

// Times each token occurs before the one to be drawn; the draft's tokens count as generated.
void SampleBatch::add_history(const Sequence& sequence, int64_t ahead) {
  if (!sequence.keeps_history()) return;
  const auto draft = std::span(sequence.draft).first(static_cast<size_t>(ahead));
  for (const auto& [id, count] : sequence.history())
    add_count(id, count + static_cast<int32_t>(std::count(draft.begin(), draft.end(), id)));
  for (auto id = draft.begin(); id != draft.end(); ++id) {
    if (sequence.history().contains(*id) || std::find(draft.begin(), id, *id) != id) continue;
    add_count(*id, static_cast<int32_t>(std::count(id, draft.end(), *id)));
  }
}

void SampleBatch::add_bias(TokenId id, float bias) {
  if (id >= vocabulary_) return;
  bias_ids_.push_back(id);
  bias_values_.push_back(bias);
}

void SampleBatch::end_row() {
  history_offsets_.push_back(static_cast<int32_t>(history_ids_.size()));
  bias_offsets_.push_back(static_cast<int32_t>(bias_ids_.size()));
}

void SampleBatch::add(const Sequence& sequence, int64_t index) {
  const GenerationRequest& request = sequence.request();
  rows_.push_back(sample_row(request.sampling, request.choice, index));
  rows_.back().logprob_temperature = logprob_temperature(request);
  add_history(sequence, index - std::ssize(sequence.tokens));
  for (const auto& [id, bias] : request.sampling.logit_bias) add_bias(id, bias);
  end_row();
}

void SampleBatch::add_known(const Sequence& sequence, TokenId target) {
  rows_.push_back(SampleRow{});
  rows_.back().logprob_temperature = logprob_temperature(sequence.request());
  // A bias that nothing outweighs makes the greedy draw give the target.
  add_bias(target, std::numeric_limits<float>::max());
  end_row();
}

void SampleBatch::add_nothing() {
  rows_.emplace_back();
  end_row();
}

Tensor SampleBatch::device(int index, DType dtype, std::initializer_list<int64_t> shape) {
  Tensor tensor(nullptr, dtype, shape);
  const auto bytes = static_cast<size_t>(std::max<int64_t>(tensor.bytes(), 64));
  if (device_[index].bytes() < bytes) {
    recordings_.clear();        // of other addresses
    device_[index] = Buffer();  // free first: both need not fit
    device_[index] = backend_.allocate(bytes * 2);
  }
  tensor.data = device_[index].data();
  return tensor;
}

template <class T>
Tensor SampleBatch::upload(int index, DType dtype, std::span<const T> host) {
  Tensor tensor = device(index, dtype, {static_cast<int64_t>(host.size())});
  if (!host.empty()) backend_.upload(tensor.data, host.data(), host.size_bytes());
  return tensor;
}

SampleBatch::Draws SampleBatch::draw(const Tensor& logits, const Wanted& wanted) {
  start(logits, wanted, flight_);
  return finish(flight_);
}

void SampleBatch::start(const Tensor& logits, const Wanted& wanted, Flight& flight) {
  const auto rows = static_cast<int64_t>(rows_.size());
  const auto count = rows_.size();
  Sample op;
  op.logits = logits;
  op.rows = device(kRows, DType::kU8, {rows, static_cast<int64_t>(sizeof(SampleRow))});
  backend_.upload(op.rows.data, rows_.data(), count * sizeof(SampleRow));
  if (!wanted.masks.empty()) {
    op.mask = device(kMask, DType::kI32, {rows, (vocabulary_ + 31) / 32});
    backend_.upload(op.mask.data, wanted.masks.data(), wanted.masks.size_bytes());
  }
  if (!history_ids_.empty()) {
    op.history_ids = upload<int32_t>(kHistory, DType::kI32, history_ids_);
    op.history_counts = upload<int32_t>(kHistory + 1, DType::kI32, history_counts_);
    op.history_offsets = upload<int32_t>(kHistory + 2, DType::kI32, history_offsets_);
  }
  if (!bias_ids_.empty()) {
    op.bias_ids = upload<int32_t>(kBias, DType::kI32, bias_ids_);
    op.bias_values = upload<float>(kBias + 1, DType::kF32, bias_values_);
    op.bias_offsets = upload<int32_t>(kBias + 2, DType::kI32, bias_offsets_);
  }
  // What is drawn lies side by side, the ids first, so that it comes back as one copy.
  flight.rows = rows;
  flight.logs = wanted.log_probabilities ? rows : 0;
  flight.top = std::min(wanted.top, vocabulary_);
  int64_t bytes = 0;
  const auto place = [&](int64_t words) {
    constexpr int64_t kStep = kResultAlignment;
    return std::exchange(bytes, bytes + (words * 4 + kStep - 1) / kStep * kStep);
  };
  place(rows);
  flight.logs_at = place(flight.logs);
  flight.top_ids_at = place(rows * flight.top);
  flight.top_logs_at = place(rows * flight.top);
  const Tensor results = device(kResults, DType::kU8, {bytes});
  auto* memory = results.as<std::byte>();
  op.ids = Tensor(memory, DType::kI32, {rows});
  if (flight.logs > 0) op.log_probabilities = Tensor(memory + flight.logs_at, DType::kF32, {rows});
  if (flight.top > 0) {
    op.top_ids = Tensor(memory + flight.top_ids_at, DType::kI32, {rows, flight.top});
    op.top_log_probabilities = Tensor(memory + flight.top_logs_at, DType::kF32, {rows, flight.top});
  }
  if (const size_t size = backend_.workspace_bytes(op); size > 0)
    op.workspace = device(kWorkspace, DType::kU8, {static_cast<int64_t>(size)});
  give(op, {logits.data, rows, flight.top, op.mask.present(), wanted.log_probabilities});
  flight.ids = op.ids;
  backend_.start_download(flight.landing, results.data, static_cast<size_t>(bytes));
}

// Apart from the forward pass: what it takes from the host may come while that runs.
void SampleBatch::give(const Sample& op, const Shape& shape) {
  if (op.history_ids.present() || op.bias_ids.present()) return backend_.sample(op);
  recordings_.run(backend_, shape, [&] {
    backend_.sample(op);
    return Nothing();
  });
}

SampleBatch::Draws SampleBatch::finish(Flight& flight) {
  const std::byte* came = backend_.finish_download(*flight.landing);
  const auto span_of = [&]<class T>(T, int64_t at, int64_t count) {
    return std::span<const T>(reinterpret_cast<const T*>(came + at), static_cast<size_t>(count));
  };
  const int64_t rows = flight.rows, top = flight.top;
  return {span_of(int32_t{}, 0, rows), span_of(float{}, flight.logs_at, flight.logs), top,
          span_of(int32_t{}, flight.top_ids_at, rows * top),
          span_of(float{}, flight.top_logs_at, rows * top)};
}

}  // namespace qiao
