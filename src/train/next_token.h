// The loss of language modelling: the mean of -log p over all labels of a step's packed sequences.
#pragma once

#include <vector>

#include "train/data.h"
#include "train/objective.h"

namespace qiao::train {

class NextToken final : public Objective {
 public:
  // `batch` sequences a step, dealt out to `shares` in their order, `micro_batch` of a share at once. `data`
  // outlives it.
  NextToken(DataStream& data, int64_t batch, int64_t micro_batch, int64_t shares = 1);

  int64_t most_tokens() const override;
  int64_t most_documents() const override;
  void begin_step(int64_t step) override;
  int64_t parts() const override { return std::ssize(parts_); }
  int64_t tokens_of(int64_t part) const override;
  PackedBatch part(int64_t index) override { return parts_[static_cast<size_t>(index)].view(); }
  double loss(int64_t index, std::span<const float> logprob, std::span<float> dlogprob) override;
  bool knows_slopes() const override { return true; }
  void slopes(int64_t index, std::span<float> dlogprob) const override;
  Json state() const override;
  void set_state(const Json& state) override;

 private:
  DataStream& data_;
  int64_t batch_, share_, micro_batch_;
  std::vector<TokenBatch> parts_;
  int64_t labelled_ = 0;  // of the step: parts give what the whole would
};

}  // namespace qiao::train
