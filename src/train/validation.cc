#include "train/validation.h"

#include <algorithm>

namespace qiao::train {

double Validation::loss(DecoderTraining& passes) {
  data_->set_position({});
  double sum = 0;
  int64_t labelled = 0;
  // The last batch is filled up from the beginning: of so few tokens a second look does no harm.
  while (data_->position().epoch == 0) {
    const TokenBatch batch = data_->next(sequences_);
    for (const float logprob : passes.forward(batch.view())) sum -= static_cast<double>(logprob);
    labelled += batch.labelled;
  }
  return sum / static_cast<double>(std::max<int64_t>(labelled, 1));
}

}  // namespace qiao::train
