// Runs of the tiny golden models, for the tests of training.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "train/trainer.h"

namespace qiao::train {

inline std::filesystem::path golden() {
  return std::filesystem::path(QIAO_TEST_DATA) / "golden" / "training";
}

class Recorder : public TrainObserver {
 public:
  void on_start(const TrainReport& report) override { this->report = report; }
  void on_step(const StepRecord& record) override { steps.push_back(record); }
  void on_sample(int64_t, const std::string&, const std::string& text) override { samples.push_back(text); }
  void on_profile(const std::string& table) override { profile = table; }
  void on_warning(const std::string& text) override { warnings.push_back(text); }
  bool should_stop() override { return static_cast<int64_t>(steps.size()) == stop_after; }

  TrainReport report;
  std::vector<StepRecord> steps;
  std::vector<std::string> warnings, samples;
  std::string profile;
  int64_t stop_after = -1;
};

// As make_training.py trains.
inline TrainOptions as_pytorch(const std::filesystem::path& out, const std::string& model = "llama") {
  TrainOptions options;
  options.init = golden() / model / "init";
  options.out = out;
  options.data.files = {golden() / "data.jsonl"};
  options.data.sequence = 32;
  options.data.shuffle = false;
  options.batch = 4;
  options.steps = 50;
  options.schedule = "constant";
  options.checkpoint_every = 10;
  options.threads = 2;
  return options;
}

inline Recorder run(const TrainOptions& options) {
  Recorder recorder;
  train(options, recorder);
  return recorder;
}

}  // namespace qiao::train
