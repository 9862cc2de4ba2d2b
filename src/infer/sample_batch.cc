#include "infer/sample_batch.h"

#include <algorithm>

namespace qiao {

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

void SampleBatch::add(const Sequence& sequence, int64_t ahead) {
  const GenerationRequest& request = sequence.request();
  rows_.push_back(
      sample_row(request.sampling, request.choice, static_cast<int64_t>(sequence.tokens.size()) + ahead));
  add_history(sequence, ahead);
  for (const auto& [id, bias] : request.sampling.logit_bias) {
    if (id >= vocabulary_) continue;
    bias_ids_.push_back(id);
    bias_values_.push_back(bias);
  }
  history_offsets_.push_back(static_cast<int32_t>(history_ids_.size()));
  bias_offsets_.push_back(static_cast<int32_t>(bias_ids_.size()));
}

Tensor SampleBatch::device(int index, DType dtype, int64_t count) {
  Tensor tensor(nullptr, dtype, {count});
  const auto bytes = static_cast<size_t>(std::max<int64_t>(tensor.bytes(), 64));
  if (device_[index].bytes() < bytes) {
    device_[index] = Buffer();  // free first: both need not fit
    device_[index] = backend_.allocate(bytes * 2);
  }
  tensor.data = device_[index].data();
  return tensor;
}

Tensor SampleBatch::upload(int index, const void* host, DType dtype, size_t count) {
  Tensor tensor = device(index, dtype, static_cast<int64_t>(count));
  if (count > 0) backend_.upload(tensor.data, host, static_cast<size_t>(tensor.bytes()));
  return tensor;
}

std::span<const int32_t> SampleBatch::draw(const Tensor& logits) {
  const size_t count = rows_.size();
  Sample op;
  op.logits = logits;
  op.rows = upload(0, rows_.data(), DType::kU8, count * sizeof(SampleRow));
  op.rows = Tensor(op.rows.data, DType::kU8,
                   {static_cast<int64_t>(count), static_cast<int64_t>(sizeof(SampleRow))});
  if (!history_ids_.empty()) {
    op.history_ids = upload(1, history_ids_.data(), DType::kI32, history_ids_.size());
    op.history_counts = upload(2, history_counts_.data(), DType::kI32, history_ids_.size());
    op.history_offsets = upload(3, history_offsets_.data(), DType::kI32, count + 1);
  }
  if (!bias_ids_.empty()) {
    op.bias_ids = upload(4, bias_ids_.data(), DType::kI32, bias_ids_.size());
    op.bias_values = upload(5, bias_values_.data(), DType::kF32, bias_ids_.size());
    op.bias_offsets = upload(6, bias_offsets_.data(), DType::kI32, count + 1);
  }
  op.ids = device(7, DType::kI32, static_cast<int64_t>(count));
  if (const size_t bytes = backend_.workspace_bytes(op); bytes > 0)
    op.workspace = device(8, DType::kU8, static_cast<int64_t>(bytes));
  backend_.sample(op);
  drawn_.resize(count);
  backend_.download(drawn_.data(), op.ids.data, count * sizeof(int32_t));
  return drawn_;
}

}  // namespace qiao
