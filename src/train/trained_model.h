// The model of a run as it is loaded and trained: all of it, or an adapter beside it.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/json.h"
#include "formats/model_files.h"
#include "models/decoder.h"
#include "models/decoder_training.h"
#include "text/tokenizer.h"
#include "train/lora.h"
#include "train/optimizer.h"
#include "train/options.h"
#include "train/parameters.h"
#include "train/ranks.h"

namespace qiao::train {

struct TrainedModel {
  // Loads the weights and lays out what is trained, whose memory prepare() takes. Throws Error naming the
  // file, flag or tensor.
  TrainedModel(const TrainOptions& options, const Communicator& communicator, Ranks& ranks);

  // Masters, gradients and states as the run begins.
  void prepare();
  // The weights again, to measure against: nothing of them is trained.
  std::unique_ptr<Decoder> load_frozen() const;
  // RUN/model: a Hugging Face directory, or PEFT's of the adapter. Throws Error(kIo).
  void write(const std::filesystem::path& folder, const MasterOf& master) const;
  // What a run has to keep to (CheckpointState::fixed).
  Json fixed() const;
  // Of a forward and a backward pass.
  double flops(const PackedBatch& batch) const;

  const TrainOptions& options;
  std::shared_ptr<ModelFiles> files;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Collectives> group, data;  // Ranks::connect; null: one process
  DevicePeaks peaks;
  std::unique_ptr<Parameters> parameters;
  std::shared_ptr<Decoder> decoder;
  std::unique_ptr<LoraAdapter> lora;  // null: all of the model is trained
  std::unique_ptr<Optimizer> optimizer;
  std::unique_ptr<Tokenizer> tokenizer;  // null: the model has none
  // Matrices in F8_128, and the names of those whose rows are no whole blocks of it.
  int64_t f8_matrices = 0;
  std::vector<std::string> unfit_matrices;

 private:
  void count_matrix(const LaidOutTensor& tensor);
};

}  // namespace qiao::train
