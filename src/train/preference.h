// Direct preference optimization (Rafailov et al. 2023): of two answers the chosen one is to become likelier
// than the rejected one, measured against a reference model.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "train/chat_encoder.h"
#include "train/data.h"
#include "train/objective.h"

namespace qiao::train {

struct PreferenceOptions {
  double beta = 0.1;             // how dear it is to leave the reference
  double label_smoothing = 0;    // share of pairs that may be the wrong way around (cDPO), in [0, 0.5)
  std::string loss = "sigmoid";  // sigmoid, or ipo (Azar et al. 2023)
};

// Log-probabilities of a pair's answers: sums over their tokens; of ipo means.
struct PairLogprobs {
  double chosen = 0, rejected = 0;
};

struct PreferenceLoss {
  double value = 0;
  double slope = 0;  // by the policy's chosen log-probability; by the rejected one: its negative
};
PreferenceLoss preference_loss(const PreferenceOptions& options, const PairLogprobs& policy,
                               const PairLogprobs& reference);

// Rows {"prompt", "chosen", "rejected"}: texts (a question and its answers) or lists of messages; where there
// is no prompt, the messages that both begin with are. Gives the chosen document, then the rejected one.
class PairDocuments final : public DocumentMaker {
 public:
  explicit PairDocuments(ChatEncoder encoder) : encoder_(std::move(encoder)) {}
  std::vector<Document> make(const Row& row) override;

 private:
  ChatEncoder encoder_;
};

// The loss is the mean over the pairs of a step.
class Preference final : public Objective {
 public:
  // `batch` pairs a step, dealt out to `shares` in their order, `micro_batch` of a share at once. `data` (of
  // PairDocuments) outlives it. `reference` is set before the first step.
  Preference(DataStream& data, int64_t batch, int64_t micro_batch, const PreferenceOptions& options,
             int64_t shares = 1);
  void set_reference(ReferencePass reference) { reference_ = std::move(reference); }

  int64_t most_tokens() const override { return micro_batch_ * 2 * data_.sequence(); }
  int64_t most_documents() const override { return micro_batch_ * 2; }
  void begin_step(int64_t step) override;
  int64_t parts() const override { return std::ssize(parts_); }
  int64_t tokens_of(int64_t part) const override;
  PackedBatch part(int64_t index) override;
  double loss(int64_t index, std::span<const float> logprob, std::span<float> dlogprob) override;
  std::span<double> sums() override { return sums_; }
  // Means over the step's pairs, under TRL's names: rewards/chosen and rewards/rejected (beta times how far
  // the policy's log-probability is above the reference's), rewards/accuracies (pairs whose chosen reward is
  // higher), rewards/margins.
  Json report() const override;
  Json state() const override { return data_.state(); }
  void set_state(const Json& state) override { data_.set_state(state); }

 private:
  struct Part {
    TokenBatch batch;
    std::vector<PairLogprobs> reference;
  };
  // Of each pair.
  std::vector<PairLogprobs> pairs_of(const TokenBatch& batch, std::span<const float> logprob) const;

  DataStream& data_;
  int64_t batch_, share_, micro_batch_;
  PreferenceOptions options_;
  ReferencePass reference_;
  std::vector<Part> parts_;
  static constexpr size_t kFigures = 3;  // chosen, rejected, right: sums over a share's pairs
  std::vector<double> sums_;
};

}  // namespace qiao::train
