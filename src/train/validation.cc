#include "train/validation.h"

#include <algorithm>

namespace qiao::train {

double Validation::loss(DecoderTraining& passes) {
  data_->set_position({});
  double sum = 0;
  int64_t labelled = 0;
  while (data_->position().epoch == 0) {
    const TokenBatch batch = data_->next(sequences_, /*last_epoch=*/0);
    if (batch.tokens.empty()) break;  // the last rows are bad
    for (const float logprob : passes.forward(batch.view())) sum -= static_cast<double>(logprob);
    labelled += batch.labelled;
  }
  return sum / static_cast<double>(std::max<int64_t>(labelled, 1));
}

}  // namespace qiao::train
