// Draws the next tokens of several sequences in one op: gathers what each row of logits asks for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
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
  // A row whose draw is `target`, for its log-probability in that sequence.
  void add_known(const Sequence& sequence, TokenId target);

  struct Wanted {
    std::span<const uint32_t> masks;  // [rows, ceil(V / 32)]: the tokens allowed; empty: all
    bool log_probabilities = false;   // of what is drawn, and of the `top` likeliest tokens of each row
    int64_t top = 0;
  };
  struct Draws {
    std::span<const int32_t> ids;  // [rows]; -1 where none can be drawn
    std::span<const float> log_probabilities;
    int64_t top = 0;  // as wanted, or the vocabulary
    std::span<const int32_t> top_ids;
    std::span<const float> top_log_probabilities;  // [rows, top]
  };
  // Draws for F32 logits [rows, V], in the order of the rows. Valid until the next call.
  Draws draw(const Tensor& logits, const Wanted& wanted);

 private:
  void add_history(const Sequence& sequence, int64_t ahead);
  void add_count(TokenId id, int32_t count);
  void add_bias(TokenId id, float bias);
  void end_row();
  Tensor device(int index, DType dtype, std::initializer_list<int64_t> shape);
  template <class T>
  Tensor upload(int index, DType dtype, std::span<const T> host);

  Backend& backend_;
  int64_t vocabulary_;
  std::vector<SampleRow> rows_;
  std::vector<int32_t> history_ids_, history_counts_, history_offsets_, bias_ids_, bias_offsets_;
  std::vector<float> bias_values_;
  std::vector<std::byte> results_;  // of the last draw
  Buffer device_[10];               // the same on the chip, grown when a step needs more
};

}  // namespace qiao
