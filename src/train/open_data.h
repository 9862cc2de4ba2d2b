// The data of a run, as its mode reads it.
#pragma once

#include <memory>

#include "formats/model_files.h"
#include "text/tokenizer.h"
#include "train/data.h"
#include "train/options.h"

namespace qiao::train {

// What rows hold in the mode of `options` (pretrain, finetune, dpo), packed; of conversations, those that are
// longer than a sequence are counted and told. `tokenizer` (may be null) outlives it. Throws Error naming
// file, row or what the model lacks.
std::unique_ptr<DataStream> open_data(const TrainOptions& options, const ModelFiles& files,
                                      const Tokenizer* tokenizer, int64_t vocabulary, const Warn& warn);

}  // namespace qiao::train
