// Reinforcement learning with verifiable rewards: groups of completions are drawn on the weights as they
// stand, rewarded, and taught from by the losses of policy_loss.h.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "train/objective.h"
#include "train/policy_options.h"
#include "train/prompts.h"
#include "train/rollout.h"

namespace qiao::train {

class Policy final : public Objective {
 public:
  struct Setup {
    PolicyOptions options;
    DataOptions data;         // the prompts; `sequence` tokens are the most of a prompt with its completion
    int64_t batch = 8;        // prompts of a rollout
    int64_t micro_batch = 0;  // sequences' worth of tokens computed at once; 0: all of an update
    const ModelFiles& files;  // that `decoder` was loaded from
    std::shared_ptr<const Decoder> decoder;
    Warn warn;
  };
  // Starts the programs of rewards and tools, and takes the engine's memory.
  explicit Policy(Setup setup);
  // With beta > 0, before the first step: the model that the run began from.
  void set_reference(ReferencePass reference) { reference_ = std::move(reference); }

  int64_t most_tokens() const override;
  int64_t most_documents() const override;
  uint64_t bytes() const override;
  // The first step of a rollout draws it. Throws Error where a program fails.
  void begin_step(int64_t step) override;
  int64_t parts() const override { return std::ssize(parts_); }
  int64_t tokens() const override;
  PackedBatch part(int64_t index) override;
  // In the first step of a rollout, on the very weights that drew it, the log-probabilities must be the
  // rollout's bit for bit: else throws Error(kInvalidInput) naming step, sequence, token and both.
  double loss(int64_t index, std::span<const float> logprob, std::span<float> dlogprob) override;
  bool at_rest() const override;
  // reward, reward_std (of a group, on average), reward/NAME, completion_tokens, turns, finished, entropy
  // (the mean of -log p of what was drawn), clipped (share of tokens), kl (k3 to the reference, a token; with
  // beta), rollout_kl and rollout_differing (k3 to the rollout, a token, and tokens whose bits differ: of a
  // rollout's first step), groups and dropped_groups, rollout_seconds, reward_seconds,
  // rollout_tokens_per_second, training_seconds.
  Json report() const override;
  Json state() const override;
  void set_state(const Json& state) override;

 private:
  // A completion that is taught.
  struct Taught {
    Trajectory trajectory;
    double advantage = 0;
    std::vector<double> reference;  // by drawn token, where there is one
  };
  // Sequences side by side.
  struct Part {
    std::vector<int32_t> tokens, positions, labels, starts;
    std::vector<Taught*> sequences;
  };
  void draw(int64_t step);
  void take_group(std::span<Trajectory> group, const Prompt& prompt, int64_t step);
  Reward reward_of(const Trajectory& trajectory, const Prompt& prompt, int64_t step);
  std::vector<Part> pack(std::span<Taught> sequences) const;
  void score_reference();
  void check_bits(const Taught& taught, std::span<const float> logprob, size_t first);

  Setup setup_;
  PolicyLoss loss_;
  std::shared_ptr<LanguageModel> model_;
  std::unique_ptr<ToolTurns> turns_;
  std::unique_ptr<Prompts> prompts_;
  std::unique_ptr<Rewarder> rewarder_;
  std::unique_ptr<Rollout> rollout_;
  ReferencePass reference_;

  std::vector<Taught> rollout_sequences_;
  std::vector<Part> parts_;  // of the step's update
  PolicyLoss::Totals totals_;
  int64_t step_ = 0;
  int64_t drawn_for_ = 0;  // the step that the rollout was drawn in; 0: none

  // Of the rollout, and of the step.
  struct Figures {
    int64_t completions = 0, finished = 0, tokens = 0, turns = 0, groups = 0, dropped = 0;
    double reward = 0, reward_std = 0, minus_logprob = 0, seconds = 0, reward_seconds = 0;
    std::map<std::string, std::pair<double, int64_t>> more;
  } drawn_;
  int64_t clipped_ = 0, compared_ = 0, differing_ = 0;
  double k3_ = 0, rollout_k3_ = 0;
  std::chrono::steady_clock::time_point training_since_;
};

}  // namespace qiao::train
