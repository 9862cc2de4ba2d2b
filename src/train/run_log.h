// What a run tells as it goes: RUN/metrics.jsonl, samples.jsonl and TensorBoard's event file.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "train/run_folder.h"
#include "train/trainer.h"

namespace qiao::train {

class RunLog {
 public:
  // Steps up to `done` are in the files already: what they hold of later ones, and what a crash has torn, is
  // dropped. `warn` hears of what cannot be written (a full disk); it is tried again with the next step.
  RunLog(const std::filesystem::path& run, int64_t done, std::function<void(const std::string&)> warn);

  void step(const StepRecord& record);
  void sample(int64_t step, const std::string& prompt, const std::string& text);

 private:
  void append(AppendFile& file, std::string_view record);

  std::filesystem::path run_;
  std::function<void(const std::string&)> warn_;
  AppendFile metrics_;
  std::optional<AppendFile> samples_, events_;
  bool failing_ = false;  // told once, until it goes on
};

}  // namespace qiao::train
