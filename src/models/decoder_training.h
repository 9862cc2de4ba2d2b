// A decoder's forward and backward pass over packed documents, layer by layer. What a layer makes is kept for
// its way back, or its input alone, and the rest is made again (Chen et al. 2016): the same bits.
//
// A decoder that several ranks train together (DecoderOptions::trainers) has heads and feed-forward units
// spread over them (shards.h; Shoeybi et al. 2019), all the rest whole on each: all ranks make the same calls
// with the same batches. The head computes a part of the batch's rows on each. Streams, log-probabilities and
// gradients of what is whole and not in DecoderWeights::summed are the same bits on all ranks; of what is in
// there each has an addend.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "models/decoder.h"
#include "nn/context.h"
#include "nn/tape.h"

namespace qiao {

// Documents one behind the other, in host memory. No document's attention reaches another.
struct PackedBatch {
  std::span<const int32_t> tokens;     // [T], each in [0, V): checked
  std::span<const int32_t> positions;  // [T], from 0 in each document
  std::span<const int32_t> labels;     // [T], the token that follows, or -1: no loss here
  std::span<const int32_t> starts;     // [D + 1], ascending from 0 to T
  float temperature = 1.0f;            // > 0: log-probabilities are of logits over it
  nn::AdapterDropout dropout = {};     // of what enters the adapter's matrices
};

// Whether layers are computed again on the way back: a third more work, for memory that does not grow with
// layers times what each makes. kAuto: where keeping all takes more than a quarter of the free memory.
enum class Recompute : uint8_t { kAuto, kOn, kOff };

// What batches will ask for, which memory is planned for.
struct PassNeeds {
  bool dropout = false;       // PackedBatch::dropout
  bool slopes_first = false;  // forward() with dlogprob; without it where this is false
};

// Of a batch's tokens those whose head a rank of `size` computes.
Range head_rows(int64_t tokens, int rank, int size);

// Where the decoder has an adapter, all tokens go through its first. Not thread-safe; one at a time uses the
// decoder's chip.
class DecoderTraining {
 public:
  // Plans and takes the memory for batches of at most `tokens` tokens in `documents` documents. Throws
  // Error(kUnsupported) for a model with layers that have no way back yet, Error(kTooLarge) with both sizes.
  DecoderTraining(const Decoder& decoder, int64_t tokens, int64_t documents,
                  Recompute recompute = Recompute::kAuto, const PassNeeds& needs = {});
  ~DecoderTraining();

  size_t bytes() const;  // of the chip's memory
  bool recomputes() const;
  // What the same would take where `free` bytes are; nothing is taken.
  struct Plan {
    size_t bytes = 0;
    bool recomputes = false;
  };
  static Plan plan(const Decoder& decoder, int64_t tokens, int64_t documents, Recompute recompute,
                   uint64_t free, const PassNeeds& needs = {});

  // The log-probability of each label, 0 where it is -1; valid until the next call. Without the adapter: the
  // base's own, which preferences are measured by. Throws
  // Error(kInvalidInput) where the batch does not fit or an id is out of range.
  std::span<const float> forward(const PackedBatch& batch, bool with_adapter = true);
  // The same, where the loss's derivative by each log-probability is known beforehand (dlogprob [T]): the way
  // back of the head, whose gradients are added to `gradients`, is gone at once, for a quarter less work
  // there. backward() follows, with the same dlogprob: the same bits.
  std::span<const float> forward(const PackedBatch& batch, std::span<const float> dlogprob,
                                 nn::ParameterGradients& gradients);
  // Of the last forward pass, where the configuration has a router_aux_loss_coef (else 0): how uneven the
  // experts' loads are, E * sum over experts of the share of picks times the mean score, both over all tokens
  // and layers with experts (Shazeer et al. 2017, Fedus et al. 2021; Transformers' load_balancing_loss_func).
  double imbalance() const;
  // The way back of the last forward pass: gradients of what is trained are added to `gradients`. dlogprob
  // [T]: the loss's derivative by each log-probability; dimbalance: by imbalance().
  void backward(std::span<const float> dlogprob, nn::ParameterGradients& gradients, double dimbalance = 0);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qiao
