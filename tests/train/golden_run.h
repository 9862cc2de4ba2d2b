// What tests of training share: the runs of make_training.py, and tiny models changed on their way to disk.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/json.h"
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

// In as many threads, a rank in each. What a rank throws comes out of here, rank 0's first.
inline void in_a_group(int size, const std::function<void(Communicator&)>& body) {
  auto communicators = make_thread_communicators(size, 60);
  std::vector<std::exception_ptr> errors(communicators.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < communicators.size(); ++rank) {
    threads.emplace_back([&, rank] {
      const auto own = std::move(communicators[rank]);
      try {
        body(*own);
        own->finish();
      } catch (...) {
        errors[rank] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

// Trains in as many threads as `size`; rank 0's recorder.
inline Recorder run_in_threads(const TrainOptions& options, int size) {
  std::vector<Recorder> recorders(static_cast<size_t>(size));
  in_a_group(size, [&](Communicator& communicator) {
    TrainOptions own = options;
    if (own.virtual_ranks == 0) own.virtual_ranks = 4;
    own.threads = 1;
    train(own, recorders[static_cast<size_t>(communicator.rank())], communicator);
  });
  for (size_t rank = 1; rank < recorders.size(); ++rank) {
    EXPECT_TRUE(recorders[rank].steps.empty());
    EXPECT_TRUE(recorders[rank].warnings.empty());
    EXPECT_TRUE(recorders[rank].samples.empty());
  }
  return recorders.front();
}

// Of what a run has trained.
inline std::string model_bytes(const TrainOptions& options) {
  return read_file(options.out / "model" / "model.safetensors");
}

// The files of a run, without those that tell of times and processes.
inline std::vector<std::filesystem::path> files_of(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const std::filesystem::directory_entry& entry :
       std::filesystem::recursive_directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file() && name != "metrics.jsonl" && name != "lock" && !name.starts_with("events."))
      files.push_back(entry.path().lexically_relative(folder));
  }
  std::ranges::sort(files);
  return files;
}

inline void expect_same_run(const std::filesystem::path& expected, const std::filesystem::path& actual) {
  const std::vector<std::filesystem::path> files = files_of(expected);
  EXPECT_EQ(files, files_of(actual));
  for (const std::filesystem::path& file : files)
    EXPECT_TRUE(read_file(expected / file) == read_file(actual / file)) << file;
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

// A configuration whose widths no number of ranks divides, with weights that are drawn.
inline std::filesystem::path write_uneven_model(const std::filesystem::path& folder) {
  Json config = parse_json(read_file(golden() / "llama" / "init" / "config.json"), "config.json");
  config.update({{"num_attention_heads", 6},
                 {"num_key_value_heads", 3},
                 {"head_dim", 8},
                 {"hidden_size", 44},
                 {"intermediate_size", 101},
                 {"vocab_size", 97}});
  write_file_atomically(folder / "config.json", dump_json(config, 2));
  return folder;
}

}  // namespace qiao::train
