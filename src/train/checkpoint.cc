#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cstring>

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
constexpr std::pair<Parameters::Kind, std::string_view> kParts[] = {
    {Parameters::Kind::kMaster, "parameter."},
    {Parameters::Kind::kFirstMoment, "first_moment."},
    {Parameters::Kind::kSecondMoment, "second_moment."},
};

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

CheckpointState read_state(const fs::path& folder) {
  const Json json = parse_json(read_regular_file(folder / "state.json", 1 << 20), "state.json");
  if (!json.is_object() || !json.contains("sha256") || !json["sha256"].is_string())
    throw_error(ErrorKind::kInvalidInput, "state.json: sha256 is missing");
  if (sha256_of_file(folder / "state.safetensors") != json["sha256"].get_ref<const std::string&>())
    throw_error(ErrorKind::kInvalidInput, "state.safetensors does not match its checksum");
  CheckpointState state;
  state.step = number(json, "step");
  state.seed = static_cast<uint64_t>(number(json, "seed"));
  const auto objective = json.find("objective");
  if (objective == json.end() || !objective->is_object())
    throw_error(ErrorKind::kInvalidInput, "state.json: objective is missing");
  state.objective = *objective;
  return state;
}

void read_tensors(const fs::path& path, Parameters& parameters) {
  const SafetensorsFiles file = open_safetensors(path, TypePolicy::kRefuseUnsupported);
  std::vector<float> values;
  for (const auto& [kind, prefix] : kParts) {
    for (const Parameters::Named& tensor : parameters.tensors()) {
      const std::string name = fmt::format("{}{}", prefix, tensor.name);
      const auto found = std::find_if(file.tensors.begin(), file.tensors.end(),
                                      [&](const TensorInfo& info) { return info.name == name; });
      if (found == file.tensors.end() || found->shape != tensor.shape || found->dtype != DType::kF32) {
        throw_error(ErrorKind::kInvalidInput,
                    "{}: tensor {} of shape [{}] is not in it: a checkpoint of another model", path.string(),
                    name, fmt::join(tensor.shape, ", "));
      }
      values.resize(static_cast<size_t>(tensor.count));
      std::memcpy(values.data(), file.files.front().bytes().data() + found->offset,
                  values.size() * sizeof(float));
      parameters.write(kind, tensor, values);
    }
  }
  parameters.rewrite();
}

void write_state(const fs::path& folder, const CheckpointState& state, const Snapshot& snapshot) {
  fs::remove_all(folder);
  fs::create_directories(folder);
  std::vector<TensorToWrite> tensors;
  for (const auto& [kind, prefix] : kParts) {
    for (size_t i = 0; i < snapshot.tensors().size(); ++i) {
      const Parameters::Named& tensor = snapshot.tensors()[i];
      tensors.push_back({fmt::format("{}{}", prefix, tensor.name), DType::kF32, tensor.shape,
                         [&, i, kind = kind] { return std::as_bytes(snapshot.values(kind, i)); }});
    }
  }
  write_safetensors(folder / "state.safetensors", tensors);
  const Json json = {{"step", state.step},
                     {"seed", state.seed},
                     {"objective", state.objective},
                     {"sha256", sha256_of_file(folder / "state.safetensors")}};
  write_file_atomically(folder / "state.json", dump_json(json, 2) + "\n");
}

}  // namespace

bool has_checkpoint(const fs::path& run) { return !steps_of(run).empty(); }

void save_checkpoint(const fs::path& run, const CheckpointState& state, const Snapshot& snapshot,
                     int64_t keep) {
  const fs::path folder = folder_of(run, state.step), beside = folder.string() + ".part";
  try {
    write_state(beside, state, snapshot);
    fs::remove_all(folder);  // of a run that came by here before
    fs::rename(beside, folder);
  } catch (const std::exception& error) {
    std::error_code ignored;
    fs::remove_all(beside, ignored);
    throw_error(ErrorKind::kIo, "the checkpoint of step {} is not written: {}", state.step, error.what());
  }
  sync_directory(folder.parent_path());
  const std::vector<int64_t> steps = steps_of(run);
  for (size_t i = static_cast<size_t>(std::max<int64_t>(keep, 1)); i < steps.size(); ++i)
    fs::remove_all(folder_of(run, steps[i]));
}

CheckpointState load_checkpoint(const fs::path& run, Parameters& parameters,
                                const std::function<void(const std::string&)>& warn) {
  std::string why = "there is none";
  const std::vector<int64_t> steps = steps_of(run);
  if (steps.empty() && fs::exists(run / "lock")) {
    warn(fmt::format("{}: no checkpoint yet: the run begins again", run.string()));
    return {};
  }
  std::vector<fs::path> damaged;
  for (const int64_t step : steps) {
    CheckpointState state;
    try {
      state = read_state(folder_of(run, step));
    } catch (const Error& error) {
      why = fmt::format("{}: {}", folder_of(run, step).string(), error.what());
      damaged.push_back(folder_of(run, step));
      continue;
    }
    read_tensors(folder_of(run, step) / "state.safetensors", parameters);
    for (const fs::path& folder : damaged) fs::remove_all(folder);  // lest it counts among those kept
    if (!damaged.empty()) warn(fmt::format("{}; the run goes on from step {}", why, step));
    return state;
  }
  throw_error(ErrorKind::kNotFound, "{}: no whole checkpoint to go on from ({})", run.string(), why);
}

}  // namespace qiao::train
