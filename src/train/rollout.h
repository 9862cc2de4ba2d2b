// Completions drawn by the engine that serves, on the very weights that are trained.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "infer/engine.h"
#include "train/prompts.h"
#include "train/reward.h"

namespace qiao::train {

struct RolloutOptions {
  int64_t group = 8;         // completions of a prompt
  int64_t context = 512;     // most tokens of a prompt with its completion
  int64_t max_tokens = 256;  // most tokens of a completion, what tools answered with them
  float temperature = 1.0f;
  uint64_t seed = 0;
  int64_t slots = 64;     // sequences that are drawn at once
  int64_t max_turns = 8;  // answers of a completion
  std::string tool_command;
  double tool_limit_seconds = 60;  // for the calls of one answer
};

// A completion and what was known as it was drawn.
struct Trajectory {
  size_t prompt = 0;  // its place among the step's prompts
  int64_t index = 0;  // its place in the group
  int64_t prompt_tokens = 0;
  std::vector<TokenId> tokens;  // the prompt's, then what was drawn and what tools answered
  std::vector<float> logprob;   // by token: log p at the sampling temperature where `drawn`, else 0
  std::vector<bool> drawn;      // by token: the model drew it
  int64_t drawn_tokens = 0;
  size_t answer = 0;  // where in tokens the last answer begins
  int64_t turns = 0;
  bool finished = false;   // the last answer ended of itself
  std::string completion;  // text of the last answer, as it is served
  Json messages;           // the prompt's, then what followed; null where the prompt was no conversation
};

// One rollout at a time; between them the weights may be rewritten: keys and values of one rollout are never
// read by another.
class Rollout {
 public:
  // Takes the engine's memory, all of it. Starts the program of the tools, where there is one. `model` and
  // `turns` outlive this.
  Rollout(std::shared_ptr<LanguageModel> model, const ToolTurns& turns, const RolloutOptions& options);

  // `group` completions of each prompt, in order. They depend on the weights, the seed, `step`, a prompt's
  // number
  // (`first` + its place) and the place in the group alone. Throws Error where a tool or the engine fails.
  std::vector<Trajectory> run(int64_t step, std::span<const Prompt> prompts, int64_t first);
  uint64_t cache_bytes() const { return engine_->memory().cache; }

 private:
  void draw_answers(std::span<Trajectory* const> open, int64_t step, int64_t first);
  GenerationRequest request_of(const Trajectory& trajectory, int64_t step, int64_t first) const;
  bool go_on(Trajectory& trajectory, const Prompt& prompt, int64_t step);

  std::shared_ptr<LanguageModel> model_;
  const ToolTurns& turns_;
  RolloutOptions options_;
  std::unique_ptr<LineProgram> tools_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace qiao::train
