#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/quote.h"
#include "formats/safetensors_write.h"
#include "hub/digest.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr int64_t kLeader = 0;                        // a virtual rank of rank 0
constexpr size_t kMostStateBytes = size_t{64} << 20;  // rows that are bad are listed

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

// What is not whole yet, or no more: RunFolder removes what a process that was killed left of it.
fs::path beside(const fs::path& folder) { return folder.string() + ".part"; }

// Never leaves half of it under its name.
void remove_checkpoint(const fs::path& folder) {
  std::error_code ignored;
  fs::remove_all(beside(folder), ignored);
  fs::rename(folder, beside(folder), ignored);
  fs::remove_all(beside(folder), ignored);
}

void keep_last(const fs::path& run, int64_t keep) {
  const std::vector<int64_t> steps = steps_of(run);
  for (size_t i = static_cast<size_t>(std::max<int64_t>(keep, 1)); i < steps.size(); ++i)
    remove_checkpoint(folder_of(run, steps[i]));
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
  const Json json = parse_json(read_regular_file(folder / "state.json", kMostStateBytes), "state.json");
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
  if (const auto fixed = json.find("fixed"); fixed != json.end() && fixed->is_object())
    saved.state.fixed = *fixed;
  return saved;
}

void check_files(const fs::path& folder, const Saved& saved) {
  for (const auto& [name, sha256] : saved.files) {
    if (sha256_of_file(folder / name) != sha256)
      throw_error(ErrorKind::kInvalidInput, "{} does not match its checksum", name);
  }
}

// Names what differs as a person calls it.
void check_fixed(const fs::path& folder, const Json& then, const Json& now) {
  for (const auto& [name, value] : now.items()) {
    const auto found = then.find(name);
    if (found == then.end() || *found == value) continue;
    throw_error(ErrorKind::kInvalidInput, "{} is {}; the run began with {} ({}), and goes on with it alone",
                name, printable(dump_json(value), 200), printable(dump_json(*found), 200), folder.string());
  }
}

void read_tensors(CheckpointFiles& files, Parameters& parameters, Optimizer& optimizer) {
  for (const Parameters::Named& tensor : parameters.tensors())
    if (tensor.is_here) parameters.write_master(tensor, files.master(tensor));
  std::vector<std::byte> own;
  for (const Optimizer::State& state : optimizer.states()) {
    if (state.bytes == 0) continue;
    const Parameters::Named& tensor = parameters.tensors()[state.tensor];
    std::span<const std::byte> bytes = files.bytes(state.name, state.dtype, state.shape);
    if (state.bytes < state.whole_bytes) {
      own.resize(state.bytes);
      take_part(tensor.part, tensor.runs, static_cast<size_t>(row_bytes(state.dtype, 1)), bytes, own);
      bytes = own;
    }
    optimizer.write(state, bytes);
  }
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

}  // namespace

CheckpointFiles::CheckpointFiles(const fs::path& run, int64_t step) : folder_(folder_of(run, step)) {
  for (const auto& [name, sha256] : read_saved(folder_).files)
    files_.push_back(open_safetensors(folder_ / name, TypePolicy::kRefuseUnsupported));
  for (size_t file = 0; file < files_.size(); ++file)
    for (const TensorInfo& info : files_[file].tensors) by_name_[info.name] = {file, &info};
}

std::span<const std::byte> CheckpointFiles::bytes(const std::string& name, DType dtype,
                                                  const std::vector<int64_t>& shape) {
  const auto mapped = [&](const Place& place) -> const MappedFile& {
    return files_[place.file].files.front();
  };
  if (last_.info != nullptr) mapped(last_).release(last_.info->offset, last_.info->bytes);
  const auto found = by_name_.find(name);
  const TensorInfo* info = found != by_name_.end() ? found->second.info : nullptr;
  if (info == nullptr || info->shape != shape || info->dtype != dtype) {
    const std::string there =
        info != nullptr ? fmt::format("is {}[{}] in it", info->type_name(), fmt::join(info->shape, ", "))
                        : "is not in it";
    throw_error(ErrorKind::kInvalidInput,
                "{}: tensor {} {}, {}[{}] was expected: a checkpoint of another model, or of another "
                "--optimizer or --adam-states",
                folder_.string(), name, there, traits(dtype).name, fmt::join(shape, ", "));
  }
  last_ = found->second;
  return mapped(last_).bytes().subspan(info->offset, info->bytes);
}

std::span<const float> CheckpointFiles::master(const Parameters::Named& tensor) {
  const std::span<const std::byte> values =
      bytes(fmt::format("parameter.{}", tensor.name), DType::kF32, tensor.shape);
  return {reinterpret_cast<const float*>(values.data()), values.size() / sizeof(float)};
}

bool has_checkpoint(const fs::path& run) { return !steps_of(run).empty(); }

void begin_checkpoint(const fs::path& run, int64_t step) {
  const fs::path folder = beside(folder_of(run, step));
  std::error_code error;
  fs::remove_all(folder, error);
  if (!error) fs::create_directories(folder, error);
  if (error) throw_error(ErrorKind::kIo, "{}: cannot make the folder: {}", folder.string(), error.message());
}

void write_shares(const fs::path& run, int64_t step, const Snapshot& snapshot, const Ranks& ranks,
                  std::span<std::string> checksums) {
  const fs::path folder = beside(folder_of(run, step));
  for (int64_t i = 0; i < ranks.own_shares(); ++i) {
    const int64_t share = ranks.first_share() + i;
    checksums[static_cast<size_t>(share)] =
        write_share(folder / file_of(share, ranks.shares()), share, snapshot, ranks);
  }
}

void finish_checkpoint(const fs::path& run, const CheckpointState& state,
                       std::span<const std::string> checksums, int64_t keep) {
  const fs::path folder = folder_of(run, state.step);
  Json json = {
      {"step", state.step}, {"seed", state.seed}, {"objective", state.objective}, {"fixed", state.fixed}};
  const std::ptrdiff_t shares = std::ssize(checksums);
  for (std::ptrdiff_t i = 0; i < shares; ++i)
    json["sha256"][file_of(i, shares)] = checksums[static_cast<size_t>(i)];
  write_file_atomically(beside(folder) / "state.json", dump_json(json, 2) + "\n");
  std::error_code error;
  fs::remove_all(folder, error);  // of a run that came by here before
  fs::rename(beside(folder), folder, error);
  if (error) throw_error(ErrorKind::kIo, "{}: cannot rename: {}", folder.string(), error.message());
  sync_directory(folder.parent_path());
  keep_last(run, keep);
}

void abandon_checkpoint(const fs::path& run, int64_t step) {
  std::error_code ignored;
  fs::remove_all(beside(folder_of(run, step)), ignored);
}

CheckpointState load_checkpoint(const fs::path& run, const Json& fixed, int64_t keep, Parameters& parameters,
                                Optimizer& optimizer, const Ranks& ranks,
                                const std::function<void(const std::string&)>& warn) {
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
  const auto step = static_cast<int64_t>(chosen);
  Saved saved = read_saved(folder_of(run, step));
  check_fixed(folder_of(run, step), saved.state.fixed, fixed);
  {
    CheckpointFiles files(run, step);
    read_tensors(files, parameters, optimizer);
  }
  ranks.barrier();  // all have read what is next tidied up
  if (!ranks.leads()) return saved.state;
  for (const fs::path& path : damaged) remove_checkpoint(path);  // lest they count among those kept
  if (!damaged.empty()) warn(fmt::format("{}; the run goes on from step {}", why, saved.state.step));
  keep_last(run, keep);  // a process that was killed may not have come to it
  return saved.state;
}

}  // namespace qiao::train
