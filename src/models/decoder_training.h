// A decoder's forward and backward pass over packed documents, layer by layer: each layer's input is kept,
// the rest is made again on the way back (Chen et al. 2016).
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "models/decoder.h"
#include "nn/tape.h"

namespace qiao {

// Documents one behind the other, in host memory. No document's attention reaches another.
struct PackedBatch {
  std::span<const int32_t> tokens;     // [T], each in [0, V): checked
  std::span<const int32_t> positions;  // [T], from 0 in each document
  std::span<const int32_t> labels;     // [T], the token that follows, or -1: no loss here
  std::span<const int32_t> starts;     // [D + 1], ascending from 0 to T
  float temperature = 1.0f;            // > 0: log-probabilities are of logits over it
};

// Not thread-safe; one at a time uses the decoder's chip.
class DecoderTraining {
 public:
  // Plans and takes the memory for batches of at most `tokens` tokens in `documents` documents. Throws
  // Error(kUnsupported) for a model with layers that have no way back yet, Error(kTooLarge) with both sizes.
  DecoderTraining(const Decoder& decoder, int64_t tokens, int64_t documents);
  ~DecoderTraining();

  size_t bytes() const;  // of the chip's memory

  // The log-probability of each label, 0 where it is -1; valid until the next call. Throws
  // Error(kInvalidInput) where the batch does not fit or an id is out of range.
  std::span<const float> forward(const PackedBatch& batch);
  // The way back of the last forward pass: gradients of what is trained are added to `gradients`. dlogprob
  // [T]: the loss's derivative by each log-probability.
  void backward(std::span<const float> dlogprob, nn::ParameterGradients& gradients);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qiao
