#include "models/initial_weights.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <thread>

#include "backend/philox.h"
#include "base/error.h"
#include "base/quote.h"
#include "base/thread_pool.h"
#include "models/config.h"
#include "models/config_reader.h"
#include "models/weights.h"
#include "tensor/floats.h"

namespace qiao {
namespace {

namespace fs = std::filesystem;

struct Initialization {
  uint64_t seed = 0;
  double deviation = 0.02;  // of matrices
  float norm = 1.0f;        // 0 where the model adds 1
  int64_t padding_row = -1;
  std::string embedding;  // the tensor that has it
};

uint64_t fnv1a(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// Four numbers of the standard normal distribution from each block of four words (Box and Muller 1958).
std::array<double, 4> normal_block(uint64_t seed, uint64_t stream, uint64_t block) {
  const std::array<uint32_t, 4> words =
      philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                  static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                 seed);
  std::array<double, 4> values;
  for (size_t i = 0; i < 4; i += 2) {
    const double radius = std::sqrt(-2.0 * std::log((static_cast<double>(words[i]) + 1) * 0x1p-32));
    const double angle = 2.0 * std::numbers::pi * static_cast<double>(words[i + 1]) * 0x1p-32;
    values[i] = radius * std::cos(angle);
    values[i + 1] = radius * std::sin(angle);
  }
  return values;
}

// Elements [begin, end) of a matrix; begin a multiple of 4.
void draw(const Initialization& how, const TensorInfo& tensor, int64_t begin, int64_t end, std::byte* bytes) {
  constexpr int64_t kPiece = 1 << 14;
  const uint64_t stream = fnv1a(tensor.name);
  std::vector<float> values;
  for (int64_t first = begin; first < end; first += kPiece) {
    values.resize(static_cast<size_t>(std::min(kPiece, end - first)));
    for (size_t i = 0; i < values.size(); i += 4) {
      const auto block = normal_block(how.seed, stream, (static_cast<uint64_t>(first) + i) / 4);
      for (size_t j = 0; j < std::min<size_t>(4, values.size() - i); ++j)
        values[i + j] = static_cast<float>(how.deviation * block[j]);
    }
    from_floats(values, tensor.dtype, bytes + row_bytes(tensor.dtype, first));
  }
}

void fill(const Initialization& how, const TensorInfo& tensor, std::span<std::byte> bytes) {
  if (tensor.shape.size() == 1) {  // a norm's gamma or a bias
    const std::vector<float> values(static_cast<size_t>(tensor.elements()),
                                    tensor.name.ends_with(".bias") ? 0.0f : how.norm);
    from_floats(values, tensor.dtype, bytes.data());
    return;
  }
  constexpr int64_t kAlone = 1 << 16;  // elements for which no thread pays
  const int64_t count = tensor.elements();
  const int64_t threads = count < kAlone ? 1 : usable_cpus();
  const int64_t share = ((count + threads - 1) / threads + 3) / 4 * 4;
  std::vector<std::jthread> others;
  for (int64_t first = share; first < count; first += share) {
    others.emplace_back(
        [&, first] { draw(how, tensor, first, std::min(first + share, count), bytes.data()); });
  }
  draw(how, tensor, 0, std::min(share, count), bytes.data());
  others.clear();
  if (tensor.name == how.embedding && how.padding_row >= 0 && how.padding_row < tensor.shape[0]) {
    const auto row = static_cast<size_t>(row_bytes(tensor.dtype, tensor.shape[1]));
    std::ranges::fill(bytes.subspan(static_cast<size_t>(how.padding_row) * row, row), std::byte{0});
  }
}

DType file_dtype(const ConfigReader& reader) {
  const ConfigKey own = {"dtype", ""}, before = {"torch_dtype", ""};
  const auto written = reader.find_string(own) ? reader.find_string(own) : reader.find_string(before);
  const std::string name = written.value_or("float32");
  if (name == "float32") return DType::kF32;
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float16") return DType::kF16;
  reader.refuse(reader.find_string(own) ? own : before, quote_text(name), "float32, bfloat16 or float16");
}

bool has_pickles(const fs::path& folder) {
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    const fs::path kind = entry.path().extension();
    if (kind == ".bin" || kind == ".pt" || kind == ".pth") return true;
  }
  return false;
}

}  // namespace

std::shared_ptr<ModelFiles> open_or_initialize(const fs::path& path, uint64_t seed,
                                               ModelOpenOptions options) {
  std::error_code ignored;
  // Where there are weights but none that can be read, ModelFiles::open says so.
  if (!fs::is_directory(path, ignored) || !fs::exists(path / "config.json", ignored) || has_pickles(path))
    return ModelFiles::open(path, options);
  options.need_weights = false;
  std::shared_ptr<ModelFiles> files = ModelFiles::open(path, options);
  if (files->kind() != ModelFiles::Kind::kHuggingFace || !files->tensors().empty()) return files;
  if (files->config().contains("text_config")) {
    throw_error(ErrorKind::kUnsupported,
                "{}: a model beside a vision tower cannot begin from nothing: a configuration of its text "
                "model alone was expected",
                path.string());
  }
  const ConfigReader reader(*files);
  const DecoderConfig config = read_decoder_config(*files);
  std::vector<TensorInfo> tensors = list_weights(*files, config, file_dtype(reader));
  Initialization how;
  how.seed = seed;
  how.deviation = reader.find_number({"initializer_range", ""}, 0, 1e3).value_or(0.02);
  how.norm = 1.0f - config.gamma_offset;
  how.padding_row = reader.find_integer({"pad_token_id", ""}, -1, INT32_MAX).value_or(-1);
  how.embedding = tensors.front().name;
  return ModelFiles::open_with_made_tensors(
      path, std::move(tensors),
      [how](const TensorInfo& tensor, std::span<std::byte> bytes) { fill(how, tensor, bytes); });
}

}  // namespace qiao
