// What a mode of training teaches: the batches of a step, and the loss by the log-probabilities of their
// labels. The trainer asks, in this order, once a step: begin_step; then for each part batch, loss (after the
// forward pass) and the way back; then report.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "base/json.h"
#include "models/decoder_training.h"

namespace qiao::train {

// The reference's log-probability of each label of a batch; valid until the next call.
using ReferencePass = std::function<std::span<const float>(const PackedBatch&)>;

class Objective {
 public:
  virtual ~Objective() = default;

  // Room that its largest part needs.
  virtual int64_t most_tokens() const = 0;
  virtual int64_t most_documents() const = 0;
  // Of the chip's memory, that it holds for itself.
  virtual uint64_t bytes() const { return 0; }

  // Gathers what the step (from 1) is made of. Reinforcement learning rolls out here.
  virtual void begin_step(int64_t step) = 0;
  // Computed one by one; their gradients add up. As many of each share of the step, share after share, where
  // it is shared out over ranks (ranks.h).
  virtual int64_t parts() const = 0;
  virtual int64_t tokens_of(int64_t part) const = 0;
  int64_t tokens() const {  // of all parts together
    int64_t sum = 0;
    for (int64_t part = 0; part < parts(); ++part) sum += tokens_of(part);
    return sum;
  }
  // Valid until the next begin_step.
  virtual PackedBatch part(int64_t index) = 0;
  // Whether dlogprob does not depend on the log-probabilities: slopes() then fills it in before the forward
  // pass, as loss() will, and the head goes there and back at once.
  virtual bool knows_slopes() const { return false; }
  virtual void slopes(int64_t /*index*/, std::span<float> /*dlogprob*/) const {}
  // The part's share of the step's loss (the shares add up to it), and in dlogprob [T] its derivative by each
  // label's log-probability; dlogprob is 0 on entry.
  virtual double loss(int64_t index, std::span<const float> logprob, std::span<float> dlogprob) = 0;

  // Whether a checkpoint may be written behind the step: state() says all that the next one needs.
  virtual bool at_rest() const { return true; }
  // What it adds up over the parts of each of the step's shares for report(), one share's behind the other's:
  // ranks that have computed other shares fill them in here.
  virtual std::span<double> sums() { return {}; }

  // Figures of its own for the step's line in metrics.jsonl ("reward": …); none by default.
  virtual Json report() const { return Json::object(); }

  // Where it stands, as a JSON object of a checkpoint: a run that goes on gets the same batches. set_state
  // throws Error(kInvalidInput) for one that its data does not have.
  virtual Json state() const = 0;
  virtual void set_state(const Json& state) = 0;
};

// Of one value of each share: one, or (0 + 1) + (2 + 3) of four.
inline double sum_of_shares(std::span<const double> values) {
  return values.size() == 1 ? values[0] : (values[0] + values[1]) + (values[2] + values[3]);
}

}  // namespace qiao::train
