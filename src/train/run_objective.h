// What a run teaches, made by its mode: the objective with its data, what it is measured against, and rows
// that are held out.
#pragma once

#include <memory>

#include "models/decoder_training.h"
#include "train/data.h"
#include "train/objective.h"
#include "train/ranks.h"
#include "train/trained_model.h"
#include "train/validation.h"

namespace qiao::train {

class RunObjective {
 public:
  // `passes` are those of the run, which may not be there yet: an adapter is measured against its base by
  // them. All that it refers to outlives it. Throws Error naming the flag, file or row.
  RunObjective(const TrainedModel& model, const Ranks& ranks, const std::unique_ptr<DecoderTraining>& passes,
               const Warn& warn);

  Objective& operator*() const { return *objective_; }
  Objective* operator->() const { return objective_.get(); }
  Validation* validation() const {
    return validation_.get();
  }  // of rank 0 and its group, where there are rows for it
  // The initial weights, which are measured against; null: none, or an adapter's base itself.
  const Decoder* reference() const { return reference_.get(); }
  uint64_t reference_pass_bytes() const { return reference_ ? reference_passes_->bytes() : 0; }

 private:
  std::unique_ptr<Objective> make(const Ranks& ranks, const Warn& warn);
  std::unique_ptr<DataStream> open(const TrainOptions& options, const Warn& warn) const;
  ReferencePass make_reference(const Objective& objective);

  const TrainedModel& model_;
  const std::unique_ptr<DecoderTraining>& passes_;
  std::unique_ptr<DataStream> data_;
  std::unique_ptr<Validation> validation_;
  std::unique_ptr<Decoder> reference_;
  std::unique_ptr<DecoderTraining> reference_passes_;
  std::unique_ptr<Objective> objective_;
};

}  // namespace qiao::train
