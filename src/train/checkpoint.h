// RUN/checkpoints/step-N: masters, the optimizer's states and where the data stands, from which a run goes on
// to the same bytes, with any number of processes: each virtual rank's tensors are a file of their own.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "formats/safetensors.h"
#include "train/optimizer.h"
#include "train/ranks.h"
#include "train/snapshot.h"

namespace qiao::train {

struct CheckpointState {
  int64_t step = 0;   // done
  uint64_t seed = 0;  // of all random streams: with another the run would not go on to the same bytes
  Json objective;     // Objective::state
  // What a run cannot change as it goes on, by what a person calls it: {"--lora-alpha": 32}.
  Json fixed = Json::object();
};

// A checkpoint is written in parts, into a folder beside; saver.h has their order. All throw Error(kIo).
// Of rank 0, first: the empty folder.
void begin_checkpoint(const std::filesystem::path& run, int64_t step);
// Of each rank: the files of its shares, synced; checksums[share] becomes theirs. Asks no other rank.
void write_shares(const std::filesystem::path& run, int64_t step, const Snapshot& snapshot,
                  const Ranks& ranks, std::span<std::string> checksums);
// Of rank 0, once all are written: the folder gets its name, and older ones than the last `keep` go away.
void finish_checkpoint(const std::filesystem::path& run, const CheckpointState& state,
                       std::span<const std::string> checksums, int64_t keep);
// Of rank 0: the folder beside goes away. Never throws.
void abandon_checkpoint(const std::filesystem::path& run, int64_t step);

// The tensors of a checkpoint that is whole, from its files.
class CheckpointFiles {
 public:
  // Throws Error naming the file.
  CheckpointFiles(const std::filesystem::path& run, int64_t step);
  // Valid until the next call, which lets go of their memory. Throws Error(kInvalidInput) where the tensor is
  // not there, or another.
  std::span<const std::byte> bytes(const std::string& name, DType dtype, const std::vector<int64_t>& shape);
  // Of a tensor that is trained; valid as bytes().
  std::span<const float> master(const Parameters::Named& tensor);

 private:
  struct Place {
    size_t file;
    const TensorInfo* info;
  };
  std::filesystem::path folder_;
  std::vector<SafetensorsFiles> files_;
  std::map<std::string_view, Place> by_name_;
  Place last_{0, nullptr};
};

// The newest that is whole: a damaged one (its checksum tells) is passed over for the one before it, which
// `warn` hears, and removed, as are those beyond the last `keep`. Step 0 where a run is here that has not
// come to its first checkpoint. Throws
// Error(kNotFound) where there is no run, or no checkpoint is whole; Error(kInvalidInput) naming the tensor
// where it is of another model or another optimizer, or which part of `fixed` was another. The weights are
// not rewritten. All ranks call it, and rank 0 chooses.
CheckpointState load_checkpoint(const std::filesystem::path& run, const Json& fixed, int64_t keep,
                                Parameters& parameters, Optimizer& optimizer, const Ranks& ranks,
                                const std::function<void(const std::string&)>& warn);

bool has_checkpoint(const std::filesystem::path& run);

}  // namespace qiao::train
