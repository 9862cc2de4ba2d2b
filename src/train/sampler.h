// Text that a model writes while it is being trained, by the engine that serves.
#pragma once

#include <memory>
#include <string>

#include "infer/engine.h"
#include "train/ranks.h"

namespace qiao::train {

struct SampleOptions {
  int64_t every = 0;   // steps between samples; 0: none
  std::string prompt;  // that they go on from; empty: from the beginning of a text
  int64_t tokens = 64;
};

// Shares the decoder's weights: training and sampling take turns. Of processes that train one model all of a
// group make it and call it alike.
class Sampler {
 public:
  // Takes the engine's memory, all of it. Throws Error(kNotFound) where the model has no tokenizer,
  // Error(kInvalidInput) where the prompt leaves no room in the context.
  Sampler(const ModelFiles& files, std::shared_ptr<const Decoder> decoder, const Ranks& ranks,
          const SampleOptions& options, uint64_t seed);

  // What the model writes now: the same for the same weights, seed and step. Of a group the first has it.
  std::string sample(int64_t step);

 private:
  std::string draw(int64_t step);

  const Ranks& ranks_;
  SampleOptions options_;
  uint64_t seed_;
  std::shared_ptr<LanguageModel> model_;
  std::vector<TokenId> prompt_;
  std::unique_ptr<Engine> engine_;  // of a group's first
};

}  // namespace qiao::train
