// Reinforcement learning with verifiable rewards: groups of completions are drawn on the weights as they
// stand, rewarded, and taught from by the losses of policy_loss.h. Several processes draw the prompts of
// their own virtual ranks, reward them by programs of their own, and teach from what they have drawn. Of a
// group that trains one model the first does so, while the others take part in the engine's steps, and tells
// them what it has drawn.
#pragma once

#include <array>
#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "train/objective.h"
#include "train/policy_options.h"
#include "train/prompts.h"
#include "train/ranks.h"
#include "train/rollout.h"
#include "train/taught.h"

namespace qiao::train {

class Policy final : public Objective {
 public:
  struct Setup {
    PolicyOptions options;
    DataOptions data;         // the prompts; `sequence` tokens are the most of a prompt with its completion
    int64_t batch = 8;        // prompts of a rollout, of all ranks
    int64_t micro_batch = 0;  // sequences' worth of tokens computed at once; 0: all of an update
    const ModelFiles& files;  // that `decoder` was loaded from
    std::shared_ptr<const Decoder> decoder;
    const Ranks* ranks = nullptr;  // null: one alone
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
  int64_t tokens_of(int64_t part) const override { return part_tokens_[static_cast<size_t>(part)]; }
  PackedBatch part(int64_t index) override;
  // In the first step of a rollout, on the very weights that drew it, the log-probabilities must be the
  // rollout's bit for bit: else throws Error(kInvalidInput) naming step, sequence, token and both.
  double loss(int64_t index, std::span<const float> logprob, std::span<float> dlogprob) override;
  bool at_rest() const override;
  std::span<double> sums() override { return sums_; }
  // reward, reward_std (of a group, on average), reward/NAME, completion_tokens, turns, finished, entropy
  // (the mean of -log p of what was drawn), clipped (share of tokens), kl (k3 to the reference, a token; with
  // beta), rollout_kl and rollout_differing (k3 to the rollout, a token, and tokens whose bits differ: of a
  // rollout's first step), groups and dropped_groups, rollout_seconds, reward_seconds,
  // rollout_tokens_per_second, training_seconds.
  Json report() const override;
  Json state() const override;
  void set_state(const Json& state) override;

 private:
  // Sequences side by side.
  struct Part {
    std::vector<int32_t> tokens, positions, labels, starts;
    std::vector<Taught*> sequences;
  };
  // What is added up by virtual rank: of the rollout, then of the step.
  enum Figure : size_t {
    kCompletions,
    kFinished,
    kTokens,
    kTurns,
    kGroups,
    kDropped,
    kReward,
    kRewardStd,
    kMinusLogprob,
    kOfStep,
    kClipped = kOfStep,
    kCompared,
    kDiffering,
    kK3,
    kRolloutK3,
    kFigures
  };
  double& figure(int64_t share, Figure figure) {
    return sums_[static_cast<size_t>(share) * kFigures + figure];
  }
  double total(Figure figure) const;
  int64_t share_of(int64_t part) const { return part / parts_of_share_; }
  void agree(std::span<double> values) const;  // as many of each virtual rank

  void draw(int64_t step);
  void draw_own(int64_t step, std::span<const Prompt> prompts, int64_t number,
                std::span<const int64_t> begin);
  void take_group(std::span<Trajectory> group, const Prompt& prompt, int64_t step, int64_t share);
  Reward reward_of(const Trajectory& trajectory, const Prompt& prompt, int64_t step, int64_t share);
  void gather_rewards();
  void tell_group();
  std::vector<Part> pack(std::span<Taught> sequences) const;
  void lay_out(std::vector<std::vector<Part>> of_shares);
  void score_reference();
  void check_bits(const Taught& taught, std::span<const float> logprob, size_t first, int64_t share);

  Setup setup_;
  PolicyLoss loss_;
  std::shared_ptr<LanguageModel> model_;
  std::unique_ptr<ToolTurns> turns_;
  std::unique_ptr<Prompts> prompts_;
  std::unique_ptr<Rewarder> rewarder_;  // of a group's first, and so is the next
  std::unique_ptr<Rollout> rollout_;
  uint64_t cache_bytes_ = 0;
  ReferencePass reference_;

  int64_t shares_ = 1, first_share_ = 0, own_shares_ = 1;
  std::vector<std::vector<Taught>> rollout_sequences_;  // by virtual rank; of other processes' none
  std::vector<Part> parts_;  // of the step's update, as many of each virtual rank; of other processes' empty
  std::vector<int64_t> part_tokens_;
  int64_t parts_of_share_ = 0;
  PolicyLoss::Totals totals_;
  int64_t step_ = 0;
  int64_t drawn_for_ = 0;  // the step that the rollout was drawn in; 0: none

  std::vector<double> sums_;  // [virtual rank][kFigures]
  // Sums of a reward's other figures and how many they are of; once gathered, rank 0 has all of them.
  std::map<std::string, std::array<double, 2>> more_;
  double rollout_seconds_ = 0, reward_seconds_ = 0;  // of this process
  std::chrono::steady_clock::time_point training_since_;
};

}  // namespace qiao::train
