#include "formats/fp8_tensors.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/quote.h"
#include "tensor/floats.h"

namespace qiao {
namespace {

// Ends of names of scales that nothing here needs: of activations, and of what attention takes and keeps,
// which a checkpoint may have whatever its weights are (compressed-tensors, ModelOpt, AutoFP8).
constexpr std::array<std::string_view, 5> kReadOver = {".input_scale", ".input_scale_ub", ".activation_scale",
                                                       ".weight_zero_point", ".input_zero_point"};
constexpr std::array<std::string_view, 10> kOfAttention = {
    ".k_scale", ".v_scale",    ".kv_scale",     ".kv_cache_scale", ".output_scale",
    ".q_scale", ".prob_scale", ".k_zero_point", ".v_zero_point",   ".q_zero_point"};

bool ends_in(const TensorInfo& tensor, std::span<const std::string_view> ends) {
  return std::ranges::any_of(ends, [&](std::string_view end) { return tensor.name.ends_with(end); });
}

int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

// quantization_config.weight_block_size, or compressed-tensors' block_structure; 128 x 128 where none is
// told.
struct BlockSize {
  int64_t rows = kF8Block, columns = kF8Block;
  bool told = false;
};

[[noreturn]] void refuse_config(std::string_view source, std::string_view key, const Json& value) {
  throw_error(ErrorKind::kInvalidInput,
              "{}: config.json: {} is {}; two whole numbers from 1 on were expected", source, key,
              quote_text(dump_json(value), 40));
}

BlockSize pair_of(std::string_view source, std::string_view key, const Json& value) {
  const auto is_size = [](const Json& number) {
    return number.is_number_unsigned() && number.get<uint64_t>() >= 1 && number.get<uint64_t>() <= 1u << 24;
  };
  if (!value.is_array() || value.size() != 2 || !is_size(value[0]) || !is_size(value[1]))
    refuse_config(source, key, value);
  return {value[0].get<int64_t>(), value[1].get<int64_t>(), true};
}

const Json* member(const Json* object, const char* key) {
  if (object == nullptr || !object->is_object()) return nullptr;
  const auto found = object->find(key);
  return found == object->end() || found->is_null() ? nullptr : &*found;
}

BlockSize block_size(const Json& config, std::string_view source) {
  const Json* quantization = member(&config, "quantization_config");
  if (quantization == nullptr) quantization = member(member(&config, "text_config"), "quantization_config");
  if (const Json* size = member(quantization, "weight_block_size"))
    return pair_of(source, "quantization_config.weight_block_size", *size);
  const Json* groups = member(quantization, "config_groups");
  for (auto group = groups == nullptr || !groups->is_object() ? Json::const_iterator() : groups->begin();
       groups != nullptr && groups->is_object() && group != groups->end(); ++group) {
    const Json* structure = member(member(&*group, "weights"), "block_structure");
    if (structure != nullptr && structure->is_array())
      return pair_of(source, "quantization_config.config_groups.weights.block_structure", *structure);
  }
  return {};
}

std::string shown(const TensorInfo& tensor) {
  return fmt::format("{}[{}]", tensor.type_name(), fmt::join(tensor.shape, ", "));
}

// Without dimensions of 1.
std::vector<int64_t> squeezed(std::vector<int64_t> shape) {
  std::erase(shape, 1);
  return shape;
}

// How the scales lie, by their shape; nothing where it fits no kind.
std::optional<F8Scales> grid_of(const Fp8Tensors::Source& s, const BlockSize& block) {
  std::vector<int64_t> shape = s.scales.shape;
  while (!shape.empty() && shape.back() == 1) shape.pop_back();
  const bool stacked = s.numbers.shape.size() == 3;
  const std::vector<int64_t> experts = stacked ? std::vector<int64_t>{s.experts} : std::vector<int64_t>();
  const auto with = [&](std::vector<int64_t> rest) {
    rest.insert(rest.begin(), experts.begin(), experts.end());
    return rest;
  };
  const int64_t down = parts(s.rows, block.rows), across = parts(s.columns, block.columns);
  if (squeezed(shape) == squeezed(with({down, across})))
    return F8Scales{{}, block.rows, block.columns, across};
  if (block.told && s.scales.name.ends_with("_scale_inv")) return std::nullopt;
  if (squeezed(shape) == squeezed(experts)) return F8Scales{{}, s.rows, s.columns, 1};
  if (shape == with({s.rows})) return F8Scales{{}, 1, s.columns, 1};
  return std::nullopt;
}

}  // namespace

Fp8Tensors Fp8Tensors::join(std::vector<TensorInfo>& tensors, const Json& config, std::string_view source) {
  Fp8Tensors joined;
  std::erase_if(tensors, [](const TensorInfo& tensor) { return ends_in(tensor, kOfAttention); });
  const auto is_fp8 = [](const TensorInfo& t) { return t.unsupported.empty() && t.dtype == DType::kF8_E4M3; };
  if (std::ranges::none_of(tensors, is_fp8)) return joined;
  const BlockSize block = block_size(config, source);
  std::map<std::string_view, const TensorInfo*> by_name;
  for (const TensorInfo& tensor : tensors) by_name[tensor.name] = &tensor;
  std::set<std::string> scales;
  for (TensorInfo& tensor : tensors) {
    if (!is_fp8(tensor) || (tensor.shape.size() != 2 && tensor.shape.size() != 3)) continue;
    const auto inverse = by_name.find(tensor.name + "_scale_inv"),
               plain = by_name.find(tensor.name + "_scale");
    if (inverse == by_name.end() && plain == by_name.end()) continue;
    if (inverse != by_name.end() && plain != by_name.end()) {
      throw_error(ErrorKind::kInvalidInput,
                  "{}: tensor {} has two tensors of scales, {} and {}; one was expected", source,
                  quote_text(tensor.name), quote_text(inverse->second->name),
                  quote_text(plain->second->name));
    }
    Source made;
    made.numbers = tensor;
    made.scales = inverse != by_name.end() ? *inverse->second : *plain->second;
    if (!made.scales.unsupported.empty() || !is_dense_float(made.scales.dtype)) {
      throw_error(ErrorKind::kUnsupported, "{}: tensor {} is {}; scales of F32, F16 or BF16 were expected",
                  source, quote_text(made.scales.name), shown(made.scales));
    }
    const bool stacked = tensor.shape.size() == 3;
    made.experts = stacked ? tensor.shape[0] : 1;
    made.rows = tensor.shape[stacked ? 1 : 0];
    made.columns = tensor.shape.back();
    if (tensor.elements() == 0) continue;
    const std::optional<F8Scales> grid = grid_of(made, block);
    if (!grid) {
      throw_error(
          ErrorKind::kInvalidInput,
          "{}: tensor {} is {}; one scale{}, one for each of {} rows, or [{}, {}] for blocks of {} x {} of "
          "{} {} was expected",
          source, quote_text(made.scales.name), shown(made.scales), stacked ? " an expert" : "", made.rows,
          parts(made.rows, block.rows), parts(made.columns, block.columns), block.rows, block.columns,
          quote_text(tensor.name), shown(tensor));
    }
    made.grid = *grid;
    tensor.dtype = made.grid.fit_f8_128(made.columns) ? DType::kF8_128 : DType::kF32;
    tensor.bytes = static_cast<uint64_t>(made.experts * made.rows) *
                   static_cast<uint64_t>(row_bytes(tensor.dtype, made.columns));
    scales.insert(made.scales.name);
    joined.sources_.emplace(tensor.name, std::move(made));
  }
  std::erase_if(tensors, [&](const TensorInfo& tensor) {
    return scales.contains(tensor.name) || ends_in(tensor, kReadOver);
  });
  return joined;
}

const Fp8Tensors::Source* Fp8Tensors::find(std::string_view name) const {
  const auto found = sources_.find(name);
  return found == sources_.end() ? nullptr : &found->second;
}

void Fp8Tensors::make(const Source& source, DType dtype, std::span<const std::byte> numbers,
                      std::span<const std::byte> scales, std::span<std::byte> bytes) {
  const int64_t count = source.scales.elements() / source.experts;
  const int64_t file_bytes = source.rows * source.columns;
  const int64_t made_bytes = source.rows * row_bytes(dtype, source.columns);
  const auto scale_bytes = static_cast<size_t>(count * traits(source.scales.dtype).block_bytes);
  F8Scales grid = source.grid;
  grid.values.resize(static_cast<size_t>(count));
  for (int64_t expert = 0; expert < source.experts; ++expert) {
    to_floats(source.scales.dtype, scales.data() + static_cast<size_t>(expert) * scale_bytes, grid.values);
    const std::byte* from = numbers.data() + expert * file_bytes;
    std::byte* to = bytes.data() + expert * made_bytes;
    if (dtype == DType::kF8_128) {
      join_f8(from, grid, 0, source.rows, source.columns, to);
    } else {
      dequantize_f8(from, grid, 0, source.rows, source.columns, reinterpret_cast<float*>(to));
    }
  }
}

}  // namespace qiao
