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
std::string write_share(const fs::path& path, int64_t share, const Parameters& parameters,
                        const Optimizer& optimizer, const Ranks& ranks) {
  std::vector<TensorToWrite> tensors;
  std::vector<float> values;
  std::vector<std::byte> bytes;
  for (size_t i = 0; i < parameters.tensors().size(); ++i) {
    if (ranks.owner(i) != share) continue;
    const Parameters::Named& tensor = parameters.tensors()[i];
    tensors.push_back({fmt::format("parameter.{}", tensor.name), DType::kF32, tensor.shape, [&] {
                         values.resize(static_cast<size_t>(tensor.count));
                         parameters.read(Parameters::Kind::kMaster, tensor, values);
                         return std::as_bytes(std::span(values));
                       }});
  }
  for (const Optimizer::State& kept : optimizer.states()) {
    if (ranks.owner(kept.tensor) != share) continue;
    tensors.push_back({kept.name, kept.dtype, kept.shape, [&] {
                         bytes.resize(kept.bytes);
                         optimizer.read(kept, bytes);
                         return std::span<const std::byte>(bytes);
                       }});
  }
  write_safetensors(path, tensors);
  return sha256_of_file(path);
}

}  // namespace

void save_checkpoint(const fs::path& run, const CheckpointState& state, const Parameters& parameters,
                     const Optimizer& optimizer, const Ranks& ranks, int64_t keep) {
  const fs::path folder = folder_of(run, state.step), beside = folder.string() + ".part";
  if (ranks.leads()) {
    fs::remove_all(beside);
    fs::create_directories(beside);
  }
  ranks.barrier();
  const auto shares = static_cast<size_t>(ranks.shares());
  std::vector<std::string> checksums(shares, std::string(kSha256Digits, '0'));
  for (int64_t i = 0; i < ranks.own_shares(); ++i) {
    const int64_t share = ranks.first_share() + i;
    checksums[static_cast<size_t>(share)] =
        write_share(beside / file_of(share, ranks.shares()), share, parameters, optimizer, ranks);
  }
  ranks.collect(checksums);
  if (ranks.leads()) {
    Json json = {{"step", state.step}, {"objective", state.objective}};
    for (size_t i = 0; i < shares; ++i)
      json["sha256"][file_of(static_cast<int64_t>(i), ranks.shares())] = checksums[i];
    write_file_atomically(beside / "state.json", dump_json(json, 2) + "\n");
    fs::remove_all(folder);  // of a run that came by here before
    fs::rename(beside, folder);
    sync_directory(folder.parent_path());
    const std::vector<int64_t> steps = steps_of(run);
    for (size_t i = static_cast<size_t>(std::max<int64_t>(keep, 1)); i < steps.size(); ++i)
      fs::remove_all(folder_of(run, steps[i]));
  }
  ranks.barrier();
}

CheckpointState load_checkpoint(const fs::path& run, Parameters& parameters, Optimizer& optimizer,
                                const Ranks& ranks) {
  std::string why = "there is none";
  double chosen = -1;
  for (const int64_t step : ranks.leads() ? steps_of(run) : std::vector<int64_t>()) {
    try {
      check_files(folder_of(run, step), read_saved(folder_of(run, step)));
    } catch (const Error& error) {
      why = fmt::format("{}: {}", folder_of(run, step).string(), error.what());
      continue;  // damaged: the one before it
    }
    chosen = static_cast<double>(step);
    break;
  }
  constexpr int64_t kLeader = 0;
  ranks.agree({&chosen, 1}, {&kLeader, 1});
  if (chosen < 0)
    throw_error(ErrorKind::kNotFound, "{}: no whole checkpoint to go on from ({})", run.string(), why);
  const fs::path folder = folder_of(run, static_cast<int64_t>(chosen));
  const Saved saved = read_saved(folder);
  read_tensors(folder, saved, parameters, optimizer);
  return saved.state;
}

void cut_metrics(const fs::path& run, int64_t step) {
  const fs::path path = run / "metrics.jsonl";
  if (!fs::exists(path)) return;
  const std::string text = read_file(path);
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // torn by a crash
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    const Json json = parse_json(line, path.string());
    if (json.is_object() && number(json, "step") <= step) kept.append(line).append("\n");
  }
  write_file_atomically(path, kept);
}

}  // namespace qiao::train
