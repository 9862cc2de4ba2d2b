// Draws the next tokens of several sequences in one op: gathers what each row of logits asks for.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "infer/sequence.h"

namespace qiao {

class SampleBatch {
 public:
  // Of rows of `vocabulary` logits on `backend`.
  SampleBatch(Backend& backend, int64_t vocabulary) : backend_(backend), vocabulary_(vocabulary) {}

  void clear();
  // A row: the draw of the token behind the first `ahead` tokens of the sequence's draft, as if those had
  // been drawn. Tokens beyond the vocabulary are left out of what it asks for.
  void add(const Sequence& sequence, int64_t ahead);
  // The token of each row of F32 logits [rows, V], in the order of add(); -1 where none can be drawn. Valid
  // until the next call.
  std::span<const int32_t> draw(const Tensor& logits);

 private:
  void add_history(const Sequence& sequence, int64_t ahead);
  void add_count(TokenId id, int32_t count);
  Tensor device(int index, DType dtype, int64_t count);
  Tensor upload(int index, const void* host, DType dtype, size_t count);

  Backend& backend_;
  int64_t vocabulary_;
  std::vector<SampleRow> rows_;
  std::vector<int32_t> history_ids_, history_counts_, history_offsets_, bias_ids_, bias_offsets_;
  std::vector<float> bias_values_;
  std::vector<int32_t> drawn_;
  Buffer device_[9];  // the same on the chip, grown when a step needs more
};

}  // namespace qiao
