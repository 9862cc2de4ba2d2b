#include "train/run_objective.h"

#include "train/next_token.h"
#include "train/open_data.h"
#include "train/policy.h"
#include "train/preference.h"

namespace qiao::train {

RunObjective::RunObjective(const TrainedModel& model, const Ranks& ranks,
                           const std::unique_ptr<DecoderTraining>& passes, const Warn& warn)
    : model_(model), passes_(passes), objective_(make(ranks, warn)) {}

std::unique_ptr<DataStream> RunObjective::open(const TrainOptions& options, const Warn& warn) const {
  return open_data(options, *model_.files, model_.tokenizer.get(), model_.decoder->config().vocabulary_size,
                   warn);
}

std::unique_ptr<Objective> RunObjective::make(const Ranks& ranks, const Warn& warn) {
  const TrainOptions& options = model_.options;
  if (options.mode == "grpo") {
    auto policy = std::make_unique<Policy>(Policy::Setup{.options = options.policy,
                                                         .data = options.data,
                                                         .batch = options.batch,
                                                         .micro_batch = options.micro_batch,
                                                         .files = *model_.files,
                                                         .decoder = model_.decoder,
                                                         .ranks = &ranks,
                                                         .warn = warn});
    if (options.policy.beta > 0) policy->set_reference(make_reference(*policy));
    return policy;
  }
  data_ = open(options, warn);
  if (options.mode == "dpo") {
    auto preference = std::make_unique<Preference>(*data_, options.batch, options.micro_batch,
                                                   options.preference, ranks.shares());
    preference->set_reference(make_reference(*preference));
    return preference;
  }
  auto next = std::make_unique<NextToken>(*data_, options.batch, options.micro_batch, ranks.shares());
  if (!options.validation.empty() && ranks.first_share() == 0) {
    TrainOptions held = options;
    held.data.files = options.validation;
    held.data.shuffle = false;
    validation_ = std::make_unique<Validation>(open(held, warn), next->most_tokens() / held.data.sequence);
  }
  return next;
}

ReferencePass RunObjective::make_reference(const Objective& objective) {
  if (model_.lora != nullptr)  // the base itself
    return [this](const PackedBatch& batch) { return passes_->forward(batch, false); };
  reference_ = model_.load_frozen();
  // Goes forward alone: what layers make need not be kept.
  reference_passes_ = std::make_unique<DecoderTraining>(*reference_, objective.most_tokens(),
                                                        objective.most_documents(), Recompute::kOn);
  return [this](const PackedBatch& batch) { return reference_passes_->forward(batch); };
}

}  // namespace qiao::train
