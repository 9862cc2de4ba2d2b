// Tiny models to draw from and to train: directories, and a policy with all that it stands on.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/file.h"
#include "base/json.h"
#include "formats/model_files.h"
#include "train/parameters.h"
#include "train/policy.h"

namespace qiao::testing {

namespace fs = std::filesystem;

inline fs::path golden_folder() { return fs::path(QIAO_TEST_DATA) / "golden"; }

inline void copy_files(const fs::path& from, const fs::path& to) {
  fs::create_directories(to);
  for (const fs::directory_entry& entry : fs::directory_iterator(from)) fs::copy(entry.path(), to);
}

// A model of tests/golden/training, which has no tokenizer, with one of words: w0 … w94 and an end.
inline fs::path model_of_words(const std::string& name, const fs::path& folder) {
  copy_files(golden_folder() / "training" / name / "init", folder);
  constexpr int kEnd = 95;
  Json vocabulary = Json::object();
  for (int id = 0; id < kEnd; ++id) vocabulary["w" + std::to_string(id)] = id;
  vocabulary["<end>"] = kEnd;
  const Json tokenizer = {{"version", "1.0"},
                          {"truncation", nullptr},
                          {"padding", nullptr},
                          {"added_tokens", Json::array({{{"id", kEnd},
                                                         {"content", "<end>"},
                                                         {"single_word", false},
                                                         {"lstrip", false},
                                                         {"rstrip", false},
                                                         {"normalized", false},
                                                         {"special", true}}})},
                          {"normalizer", nullptr},
                          {"pre_tokenizer", {{"type", "Whitespace"}}},
                          {"post_processor", nullptr},
                          {"decoder", nullptr},
                          {"model", {{"type", "WordLevel"}, {"vocab", vocabulary}, {"unk_token", "w0"}}}};
  write_file_atomically(folder / "tokenizer.json", dump_json(tokenizer));
  write_file_atomically(folder / "tokenizer_config.json", R"({"eos_token": "<end>"})");
  return folder;
}

// A policy on a model, as the trainer makes it.
struct PolicyWorld {
  PolicyWorld(const fs::path& init, const train::PolicyOptions& options, const train::DataOptions& data,
              int64_t batch, int64_t micro_batch, int threads, std::string_view dtype = "f32")
      : files(ModelFiles::open(init)),
        backend(make_backend("cpu", {.threads = threads})),
        parameters(*backend, dtype == "f32" ? train::Parameters::SmallTensors::kF32
                                            : train::Parameters::SmallTensors::kAsInFile) {
    DecoderOptions how;
    how.float_weights = dtype == "f32" ? DType::kF32 : DType::kBF16;
    how.quantize_f8 = dtype == "fp8";
    how.laid_out = [&](const LaidOutTensor& tensor) { parameters.add(tensor); };
    decoder = Decoder::load(*files, *backend, how);
    parameters.prepare(*files);
    policy = std::make_unique<train::Policy>(train::Policy::Setup{.options = options,
                                                                  .data = data,
                                                                  .batch = batch,
                                                                  .micro_batch = micro_batch,
                                                                  .files = *files,
                                                                  .decoder = decoder,
                                                                  .warn = nullptr});
    passes = std::make_unique<DecoderTraining>(*decoder, policy->most_tokens(), policy->most_documents());
  }

  // The loss of a step whose rollout is there.
  double loss() {
    double sum = 0;
    parameters.begin_gradient(0);
    for (int64_t part = 0; part < policy->parts(); ++part) {
      const PackedBatch batch = policy->part(part);
      const std::span<const float> logprob = passes->forward(batch);
      dlogprob.assign(batch.tokens.size(), 0.0f);
      sum += policy->loss(part, logprob, dlogprob);
      passes->backward(dlogprob, parameters);
    }
    parameters.end_gradient(0);
    return sum;
  }

  std::shared_ptr<ModelFiles> files;
  std::unique_ptr<Backend> backend;
  train::Parameters parameters;
  std::shared_ptr<Decoder> decoder;
  std::unique_ptr<train::Policy> policy;
  std::unique_ptr<DecoderTraining> passes;
  std::vector<float> dlogprob;
};

}  // namespace qiao::testing
