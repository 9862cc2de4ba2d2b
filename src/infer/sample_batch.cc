#include "infer/sample_batch.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace qiao {
namespace {

float logprob_temperature(const GenerationRequest& request) {
  const float temperature = sample_row(request.sampling, 0, 0).temperature;
  return request.logprobs_at_temperature && temperature > 0 ? temperature : 1.0f;
}

}  // namespace

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

void SampleBatch::add(const Sequence& sequence, int64_t ahead) {
  const GenerationRequest& request = sequence.request();
  rows_.push_back(
      sample_row(request.sampling, request.choice, static_cast<int64_t>(sequence.tokens.size()) + ahead));
  rows_.back().logprob_temperature = logprob_temperature(request);
  add_history(sequence, ahead);
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

Tensor SampleBatch::device(int index, DType dtype, std::initializer_list<int64_t> shape) {
  Tensor tensor(nullptr, dtype, shape);
  const auto bytes = static_cast<size_t>(std::max<int64_t>(tensor.bytes(), 64));
  if (device_[index].bytes() < bytes) {
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
  enum { kRows, kMask, kHistory, kBias = kHistory + 3, kResults = kBias + 3, kWorkspace };
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
  // What is drawn lies side by side, so that it comes back as one copy.
  const int64_t top = std::min(wanted.top, vocabulary_);
  int64_t bytes = 0;
  const auto place = [&](int64_t words) {
    constexpr int64_t kAlignment = 64;
    return std::exchange(bytes, bytes + (words * 4 + kAlignment - 1) / kAlignment * kAlignment);
  };
  const int64_t ids_at = place(rows), logs_at = place(wanted.log_probabilities ? rows : 0),
                top_ids_at = place(rows * top), top_logs_at = place(rows * top);
  const Tensor results = device(kResults, DType::kU8, {bytes});
  auto* memory = results.as<std::byte>();
  op.ids = Tensor(memory + ids_at, DType::kI32, {rows});
  if (wanted.log_probabilities) op.log_probabilities = Tensor(memory + logs_at, DType::kF32, {rows});
  if (top > 0) {
    op.top_ids = Tensor(memory + top_ids_at, DType::kI32, {rows, top});
    op.top_log_probabilities = Tensor(memory + top_logs_at, DType::kF32, {rows, top});
  }
  if (const size_t size = backend_.workspace_bytes(op); size > 0)
    op.workspace = device(kWorkspace, DType::kU8, {static_cast<int64_t>(size)});
  backend_.sample(op);

  results_.resize(static_cast<size_t>(bytes));
  if (bytes > 0) backend_.download(results_.data(), results.data, results_.size());
  const auto span_of = [&]<class T>(T, const Tensor& tensor, int64_t at) {
    const auto count = static_cast<size_t>(tensor.present() ? tensor.elements() : 0);
    return std::span<const T>(reinterpret_cast<const T*>(results_.data() + at), count);
  };
  return {span_of(int32_t{}, op.ids, ids_at), span_of(float{}, op.log_probabilities, logs_at), top,
          span_of(int32_t{}, op.top_ids, top_ids_at),
          span_of(float{}, op.top_log_probabilities, top_logs_at)};
}

}  // namespace qiao
