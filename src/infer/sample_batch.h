// Draws the next tokens of several sequences in one op: gathers what each row of logits asks for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "backend/recordings.h"
#include "infer/sequence.h"

namespace qiao {

class SampleBatch {
 public:
  // Of rows of `vocabulary` logits on `backend`. Memory for `rows` rows, with masks and `top` likeliest
  // tokens, is planned here; what penalties and biases take, and more rows, is had when it is asked for.
  SampleBatch(Backend& backend, int64_t vocabulary, int64_t rows, int64_t top);
  static size_t planned_bytes(const Backend& backend, int64_t vocabulary, int64_t rows, int64_t top);

  void clear();
  // A row: the draw of the sequence's token `index`; what it has fewer of is awaited, or the draft's first,
  // as if those had been drawn. Tokens beyond the vocabulary are left out of what it asks for.
  void add(const Sequence& sequence, int64_t index);
  // A row whose draw is `target`, for its log-probability in that sequence.
  void add_known(const Sequence& sequence, TokenId target);
  // A row that nobody asks for.
  void add_nothing();

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

  // The same in two parts. What was drawn lies on the chip (`ids`, until the next start), and is on its way
  // to the host: finish waits for it, and is valid until the next start of this flight.
  struct Flight {
    Tensor ids;  // I32 [rows], on the chip
    int64_t rows = 0, logs = 0, top = 0;
    int64_t logs_at = 0, top_ids_at = 0, top_logs_at = 0;  // bytes behind the ids
    std::unique_ptr<Landing> landing;
  };
  void start(const Tensor& logits, const Wanted& wanted, Flight& flight);
  Draws finish(Flight& flight);

 private:
  enum { kRows, kMask, kHistory, kBias = kHistory + 3, kResults = kBias + 3, kWorkspace, kBuffers };
  using Sizes = std::array<size_t, kBuffers>;
  // What a draw without penalties and biases follows from, beside what this fixes.
  struct Shape {
    const void* logits = nullptr;
    int64_t rows = 0, top = 0;
    bool masked = false, log_probabilities = false;
    auto operator<=>(const Shape&) const =
        default;  // NOLINT(modernize-use-nullptr): it takes the default for a 0
  };
  struct Nothing {};
  void give(const Sample& op, const Shape& shape);
  static Sizes planned(const Backend& backend, int64_t vocabulary, int64_t rows, int64_t top);
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
  Flight flight_;  // of draw()
  Recordings<Shape, Nothing> recordings_;
  Buffer device_[kBuffers];  // the same on the chip, grown when a step needs more
};

}  // namespace qiao
