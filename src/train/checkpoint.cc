#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "formats/safetensors.h"
#include "formats/safetensors_write.h"
#include "hub/digest.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr size_t kSha256Digits = 64;
constexpr int64_t kLeader = 0;  // a virtual rank of rank 0

// The steps of the checkpoints of a run, newest first.
std::vector<int64_t> steps_of(const fs::path& run) {
  std::vector<int64_t> steps;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(run / "checkpoints", ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    int64_t step = 0;
    const char* end = name.data() + name.size();
    if (const auto [rest, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
        error == std::errc() && rest == end)
      steps.push_back(step);
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

fs::path folder_of(const fs::path& run, int64_t step) {
  return run / "checkpoints" / fmt::format("{}{:08}", kPrefix, step);
}

int64_t number(const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_number_integer() || *found < 0)
    throw_error(ErrorKind::kInvalidInput, "state.json: {} is missing", key);
  return found->get<int64_t>();
}

std::string file_of(int64_t share, int64_t shares) {
  return shares == 1 ? "state.safetensors" : fmt::format("state-{}.safetensors", share);
}

struct Saved {
  CheckpointState state;
  std::vector<std::pair<std::string, std::string>> files;  // with their sha256
};

Saved read_saved(const fs::path& folder) {
  const Json json = parse_json(read_regular_file(folder / "state.json", 1 << 20), "state.json");
  if (!json.is_object()) throw_error(ErrorKind::kInvalidInput, "state.json: an object was expected");
  Saved saved;
  const auto files = json.find("sha256");
  if (files == json.end() || !files->is_object() || files->empty())
    throw_error(ErrorKind::kInvalidInput, "state.json: sha256 is missing");
  for (const auto& [name, sha256] : files->items()) {
    if (!sha256.is_string() || name.find('/') != std::string::npos)
      throw_error(ErrorKind::kInvalidInput, "state.json: sha256.{} is no file and its checksum", name);
    saved.files.emplace_back(name, sha256.get<std::string>());
  }
  saved.state.step = number(json, "step");
  saved.state.seed = static_cast<uint64_t>(number(json, "seed"));
  const auto objective = json.find("objective");
  if (objective == json.end() || !objective->is_object())
    throw_error(ErrorKind::kInvalidInput, "state.json: objective is missing");
  saved.state.objective = *objective;
  return saved;
}

void check_files(const fs::path& folder, const Saved& saved) {
  for (const auto& [name, sha256] : saved.files) {
    if (sha256_of_file(folder / name) != sha256)
      throw_error(ErrorKind::kInvalidInput, "{} does not match its checksum", name);
  }
}

void read_tensors(const fs::path& folder, const Saved& saved, Parameters& parameters, Optimizer& optimizer) {
  std::vector<SafetensorsFiles> files;
  std::map<std::string_view, std::pair<const SafetensorsFiles*, const TensorInfo*>> by_name;
  for (const auto& [name, sha256] : saved.files)
    files.push_back(open_safetensors(folder / name, TypePolicy::kRefuseUnsupported));
  for (const SafetensorsFiles& file : files)
    for (const TensorInfo& info : file.tensors) by_name[info.name] = {&file, &info};
  const auto bytes_of = [&](const std::string& name, DType dtype, const std::vector<int64_t>& shape) {
    const auto found = by_name.find(name);
    const TensorInfo* info = found != by_name.end() ? found->second.second : nullptr;
    if (info == nullptr || info->shape != shape || info->dtype != dtype) {
      const std::string there =
          info != nullptr ? fmt::format("is {}[{}] in it", info->type_name(), fmt::join(info->shape, ", "))
                          : "is not in it";
      throw_error(ErrorKind::kInvalidInput,
                  "{}: tensor {} {}, {}[{}] was expected: a checkpoint of another model, or of another "
                  "--optimizer or --adam-states",
                  folder.string(), name, there, traits(dtype).name, fmt::join(shape, ", "));
    }
    return found->second.first->files.front().bytes().data() + info->offset;
  };
  std::vector<float> values;
  for (const Parameters::Named& tensor : parameters.tensors()) {
    if (!tensor.is_here) continue;
    values.resize(static_cast<size_t>(tensor.count));
    std::memcpy(values.data(), bytes_of(fmt::format("parameter.{}", tensor.name), DType::kF32, tensor.shape),
                values.size() * sizeof(float));
    parameters.write_master(tensor, values);
  }
  for (const Optimizer::State& state : optimizer.states())
    optimizer.write(state, {bytes_of(state.name, state.dtype, state.shape), state.bytes});
}

// The tensors of one virtual rank; the file's checksum.
std::string write_share(const fs::path& path, int64_t share, const Snapshot& snapshot, const Ranks& ranks) {
  std::vector<TensorToWrite> tensors;
  for (const Snapshot::Kept& kept : snapshot.kept()) {
    if (ranks.owner(kept.tensor) != share) continue;
    tensors.push_back({kept.name, kept.dtype, kept.shape, [&] { return snapshot.bytes(kept); }});
  }
  write_safetensors(path, tensors);
  return sha256_of_file(path);
}

// The shares of this rank, and by rank 0 the rest; all ranks go through all of it whatever fails on one.
// Empty, or why it is not written.
std::string write_state(const fs::path& folder, const CheckpointState& state, const Snapshot& snapshot,
                        const Ranks& ranks) {
  std::string failure;
  const auto attempt = [&](const auto& body) {
    if (!failure.empty()) return;
    try {
      body();
    } catch (const std::exception& error) {
      failure = error.what();
    }
  };
  if (ranks.leads()) {
    attempt([&] {
      fs::remove_all(folder);
      fs::create_directories(folder);
    });
  }
  ranks.barrier();
  const auto shares = static_cast<size_t>(ranks.shares());
  const std::string not_written(kSha256Digits, '-');
  std::vector<std::string> checksums(shares, not_written);
  for (int64_t i = 0; i < ranks.own_shares(); ++i) {
    const int64_t share = ranks.first_share() + i;
    attempt([&] {
      checksums[static_cast<size_t>(share)] =
          write_share(folder / file_of(share, ranks.shares()), share, snapshot, ranks);
    });
  }
  ranks.collect(checksums);
  if (!ranks.leads()) return failure;
  if (failure.empty() && std::ranges::find(checksums, not_written) != checksums.end())
    failure = "another process could not write its share";
  attempt([&] {
    Json json = {{"step", state.step}, {"seed", state.seed}, {"objective", state.objective}};
    for (size_t i = 0; i < shares; ++i)
      json["sha256"][file_of(static_cast<int64_t>(i), ranks.shares())] = checksums[i];
    write_file_atomically(folder / "state.json", dump_json(json, 2) + "\n");
  });
  return failure;
}

}  // namespace

bool has_checkpoint(const fs::path& run) { return !steps_of(run).empty(); }

void save_checkpoint(const fs::path& run, const CheckpointState& state, const Snapshot& snapshot,
                     const Ranks& ranks, int64_t keep) {
  const fs::path folder = folder_of(run, state.step), beside = folder.string() + ".part";
  std::string failure = write_state(beside, state, snapshot, ranks);
  std::error_code error;
  if (ranks.leads() && failure.empty()) {
    fs::remove_all(folder, error);  // of a run that came by here before
    fs::rename(beside, folder, error);
    if (error) failure = error.message();
  }
  if (ranks.leads() && !failure.empty()) fs::remove_all(beside, error);
  double is_written = failure.empty() ? 1 : 0;
  ranks.agree({&is_written, 1}, {&kLeader, 1});
  if (is_written == 0) {
    throw_error(ErrorKind::kIo, "the checkpoint of step {} is not written: {}", state.step,
                failure.empty() ? "rank 0 could not" : failure);
  }
  if (!ranks.leads()) return;
  sync_directory(folder.parent_path());
  const std::vector<int64_t> steps = steps_of(run);
  for (size_t i = static_cast<size_t>(std::max<int64_t>(keep, 1)); i < steps.size(); ++i)
    fs::remove_all(folder_of(run, steps[i]), error);
}

CheckpointState load_checkpoint(const fs::path& run, Parameters& parameters, Optimizer& optimizer,
                                const Ranks& ranks, const std::function<void(const std::string&)>& warn) {
  std::string why = "there is none";
  std::vector<fs::path> damaged;
  double chosen = -1;
  const std::vector<int64_t> steps = ranks.leads() ? steps_of(run) : std::vector<int64_t>();
  for (const int64_t step : steps) {
    try {
      check_files(folder_of(run, step), read_saved(folder_of(run, step)));
    } catch (const Error& error) {
      why = fmt::format("{}: {}", folder_of(run, step).string(), error.what());
      damaged.push_back(folder_of(run, step));
      continue;
    }
    chosen = static_cast<double>(step);
    break;
  }
  if (ranks.leads() && steps.empty() && fs::exists(run / "lock")) {
    warn(fmt::format("{}: no checkpoint yet: the run begins again", run.string()));
    chosen = 0;
  }
  ranks.agree({&chosen, 1}, {&kLeader, 1});
  if (chosen < 0)
    throw_error(ErrorKind::kNotFound, "{}: no whole checkpoint to go on from ({})", run.string(), why);
  if (chosen == 0) return {};
  const fs::path folder = folder_of(run, static_cast<int64_t>(chosen));
  const Saved saved = read_saved(folder);
  read_tensors(folder, saved, parameters, optimizer);
  for (const fs::path& path : damaged) fs::remove_all(path);  // lest they count among those kept
  if (!damaged.empty()) warn(fmt::format("{}; the run goes on from step {}", why, saved.state.step));
  return saved.state;
}

}  // namespace qiao::train
