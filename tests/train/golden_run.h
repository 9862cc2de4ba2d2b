// What tests of training share: the runs of make_training.py, and tiny models changed on their way to disk.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "formats/safetensors.h"
#include "formats/safetensors_write.h"
#include "support/temporary_directory.h"
#include "tensor/floats.h"
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

// Of what a run has trained.
inline std::string model_bytes(const TrainOptions& options) {
  return read_file(options.out / "model" / "model.safetensors");
}

struct NamedValues {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// Of a file of safetensors.
inline std::vector<NamedValues> read_tensors(const std::filesystem::path& path) {
  const SafetensorsFiles file = open_safetensors(path, TypePolicy::kRefuseUnsupported);
  std::vector<NamedValues> tensors;
  for (const TensorInfo& info : file.tensors) {
    tensors.push_back({info.name, info.shape, std::vector<float>(static_cast<size_t>(info.elements()))});
    to_floats(info.dtype, file.files.front().bytes().data() + info.offset, tensors.back().values);
  }
  return tensors;
}

// A model of `tensors` in this dtype, with the configuration of `like`.
inline void write_model(const std::filesystem::path& folder, const std::filesystem::path& like,
                        std::span<const NamedValues> tensors, DType dtype) {
  std::filesystem::create_directories(folder);
  std::filesystem::copy_file(like / "config.json", folder / "config.json");
  std::vector<TensorToWrite> writes;
  std::vector<std::byte> bytes;
  for (const NamedValues& tensor : tensors) {
    writes.push_back({tensor.name, dtype, tensor.shape, [&] {
                        bytes.resize(static_cast<size_t>(row_bytes(dtype, std::ssize(tensor.values))));
                        from_floats(tensor.values, dtype, bytes.data());
                        return std::span<const std::byte>(bytes);
                      }});
  }
  write_safetensors(folder / "model.safetensors", writes, {{"format", "pt"}});
}

}  // namespace qiao::train
