// The loss over rows that are held out of training.
#pragma once

#include <memory>

#include "models/decoder_training.h"
#include "train/data.h"

namespace qiao::train {

class Validation {
 public:
  // `data` is not shuffled; `sequences` of it at most are computed at once.
  Validation(std::unique_ptr<DataStream> data, int64_t sequences)
      : data_(std::move(data)), sequences_(sequences) {}

  // The mean of -log p over the labels of every row, each once, by forward passes alone.
  double loss(DecoderTraining& passes);

 private:
  std::unique_ptr<DataStream> data_;
  int64_t sequences_;
};

}  // namespace qiao::train
