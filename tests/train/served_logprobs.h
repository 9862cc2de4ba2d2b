// Log-probabilities as a server tells them, to compare with what training computes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace qiao::train {

// A tensor in the chip's memory, with the buffer it owns.
class OnChip {
 public:
  OnChip(Backend& backend, DType dtype, std::initializer_list<int64_t> shape)
      : backend_(backend), tensor_(nullptr, dtype, shape) {
    buffer_ = backend.allocate(static_cast<size_t>(tensor_.bytes()));
    tensor_.data = buffer_.data();
  }
  operator Tensor() const { return tensor_; }
  void upload(const void* from) { backend_.upload(tensor_.data, from, static_cast<size_t>(tensor_.bytes())); }
  template <typename T>
  std::vector<T> list() {
    std::vector<T> values(static_cast<size_t>(tensor_.elements()));
    backend_.download(values.data(), tensor_.data, static_cast<size_t>(tensor_.bytes()));
    return values;
  }

 private:
  Backend& backend_;
  Buffer buffer_;
  Tensor tensor_;
};

// log p of ids, as a server tells them beside its tokens.
inline std::vector<float> served_logprobs(Backend& backend, const std::vector<float>& logits,
                                          std::span<const int32_t> ids) {
  const auto rows = std::ssize(ids), vocabulary = std::ssize(logits) / rows;
  OnChip on_chip(backend, DType::kF32, {rows, vocabulary}), top(backend, DType::kF32, {rows, vocabulary});
  OnChip greedy(backend, DType::kU8, {rows, static_cast<int64_t>(sizeof(SampleRow))});
  OnChip drawn(backend, DType::kI32, {rows}), top_ids(backend, DType::kI32, {rows, vocabulary});
  on_chip.upload(logits.data());
  greedy.upload(std::vector<SampleRow>(ids.size()).data());
  Sample op;
  op.logits = on_chip, op.rows = greedy, op.ids = drawn, op.top_ids = top_ids, op.top_log_probabilities = top;
  OnChip workspace(backend, DType::kU8,
                   {static_cast<int64_t>(std::max<size_t>(backend.workspace_bytes(op), 64))});
  op.workspace = workspace;
  backend.sample(op);
  const auto order = top_ids.list<int32_t>();
  const auto values = top.list<float>();
  std::vector<float> result;
  for (size_t row = 0; row < ids.size(); ++row) {
    const auto begin = order.begin() + static_cast<int64_t>(row) * vocabulary;
    const auto found = std::find(begin, begin + vocabulary, ids[row]);
    result.push_back(values[static_cast<size_t>(found - order.begin())]);
  }
  return result;
}

}  // namespace qiao::train
