#include "formats/fp8_tensors.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/quote.h"
#include "formats/quantization_config.h"
#include "tensor/floats.h"
#include "tensor/half.h"

namespace qiao {
namespace {

// Ends of names of scales that nothing here needs: of activations, and of what attention takes and keeps,
// which a checkpoint may have whatever its weights are (compressed-tensors, ModelOpt, AutoFP8).
constexpr std::array<std::string_view, 5> kReadOver = {".input_scale", ".input_scale_ub", ".activation_scale",
                                                       ".weight_zero_point", ".input_zero_point"};
constexpr std::array<std::string_view, 10> kOfAttention = {
    ".k_scale", ".v_scale",    ".kv_scale",     ".kv_cache_scale", ".output_scale",
    ".q_scale", ".prob_scale", ".k_zero_point", ".v_zero_point",   ".q_zero_point"};

constexpr std::string_view kE8M0 = "F8_E8M0";  // as safetensors has it; scales alone are of it
constexpr ScaleBlock kMicroscaling = {1, 32};

bool ends_in(const TensorInfo& tensor, std::span<const std::string_view> ends) {
  return std::ranges::any_of(ends, [&](std::string_view end) { return tensor.name.ends_with(end); });
}

int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

std::string shown(const TensorInfo& tensor) {
  return fmt::format("{}[{}]", tensor.type_name(), fmt::join(tensor.shape, ", "));
}

// Without dimensions of 1.
std::vector<int64_t> squeezed(std::vector<int64_t> shape) {
  std::erase(shape, 1);
  return shape;
}

// How the scales lie, by their shape; nothing where it fits no kind. `told`: the configuration tells
// `blocks`.
std::optional<F8Scales> grid_of(const Fp8Tensors::Source& s, std::span<const ScaleBlock> blocks, bool told) {
  std::vector<int64_t> shape = s.scales.shape;
  const std::vector<int64_t> experts =
      s.numbers.shape.size() == 3 ? std::vector<int64_t>{s.experts} : std::vector<int64_t>();
  const auto with = [&](std::vector<int64_t> rest) {
    rest.insert(rest.begin(), experts.begin(), experts.end());
    return rest;
  };
  const auto grid = [&](const ScaleBlock& block) {
    return F8Scales{{}, block.rows, block.columns, parts(s.columns, block.columns)};
  };
  const auto counts = [&](const ScaleBlock& block) {
    return with({parts(s.rows, block.rows), parts(s.columns, block.columns)});
  };
  const bool blocks_alone = told && s.scales.name.ends_with("_scale_inv");
  for (const ScaleBlock& block : blocks)
    if (shape == counts(block)) return grid(block);
  // Before shapes are compared without their ones: [2, 1] is of two rows, though [1, 2] were of blocks.
  if (!blocks_alone && shape == with({s.rows, 1})) return grid({1, s.columns});
  for (const ScaleBlock& block : blocks)
    if (squeezed(shape) == squeezed(counts(block))) return grid(block);
  if (blocks_alone) return std::nullopt;
  while (!shape.empty() && shape.back() == 1) shape.pop_back();
  if (squeezed(shape) == squeezed(experts)) return grid({s.rows, s.columns});
  if (shape == with({s.rows})) return grid({1, s.columns});
  return std::nullopt;
}

// Whether a byte is a power of two.
bool are_exponents(const TensorInfo& tensor) {
  return tensor.unsupported.empty() ? tensor.dtype == DType::kU8 : tensor.unsupported == kE8M0;
}

// The values of scales, as floats.
void read_scales(const TensorInfo& scales, const std::byte* bytes, std::span<float> values) {
  if (!are_exponents(scales)) return to_floats(scales.dtype, bytes, values);
  for (size_t i = 0; i < values.size(); ++i) {
    const int exponent = std::to_integer<int>(bytes[i]);
    values[i] = exponent == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, exponent - 127);
  }
}

bool are_scales(const TensorInfo& tensor) {
  return are_exponents(tensor) || (tensor.unsupported.empty() && is_dense_float(tensor.dtype));
}

size_t scale_bytes(const TensorInfo& scales) {
  return are_exponents(scales) ? 1 : static_cast<size_t>(traits(scales.dtype).block_bytes);
}

// A number of E4M3 has four significant bits, times a power of two as well.
DType floats_of(const TensorInfo& scales) { return are_exponents(scales) ? DType::kBF16 : DType::kF32; }

// Whether one of them is a NaN: the largest magnitude is. Eight bits throughout, which compilers make vectors
// of.
bool has_nan(std::span<const std::byte> numbers) {
  std::byte most{};
  for (const std::byte number : numbers) most = std::max(most, number & std::byte{kNanE4M3});
  return most == std::byte{kNanE4M3};
}

}  // namespace

Fp8Tensors Fp8Tensors::join(std::vector<TensorInfo>& tensors, const Json& config, std::string_view source,
                            As as) {
  Fp8Tensors joined;
  joined.path_ = source;
  check_quantization(config, source);
  std::erase_if(tensors, [](const TensorInfo& tensor) { return ends_in(tensor, kOfAttention); });
  const auto is_fp8 = [](const TensorInfo& t) { return t.unsupported.empty() && t.dtype == DType::kF8_E4M3; };
  if (std::ranges::none_of(tensors, is_fp8)) return joined;
  std::vector<ScaleBlock> blocks = scale_blocks(config, source);
  const bool told = !blocks.empty();
  if (!told) blocks = {{kF8Block, kF8Block}, kMicroscaling};
  const ScaleBlock& block = blocks.front();
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
    if (!are_scales(made.scales)) {
      throw_error(ErrorKind::kUnsupported,
                  "{}: tensor {} is {}; scales of F32, F16, BF16, F8_E8M0 or U8 were expected; {}", source,
                  quote_text(made.scales.name), shown(made.scales), kReadableWeights);
    }
    const bool stacked = tensor.shape.size() == 3;
    made.experts = stacked ? tensor.shape[0] : 1;
    made.rows = tensor.shape[stacked ? 1 : 0];
    made.columns = tensor.shape.back();
    if (tensor.elements() == 0) continue;
    const std::optional<F8Scales> grid = grid_of(made, blocks, told);
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
    const bool in_blocks = as == As::kBlocks && made.grid.fit_f8_128(made.columns);
    tensor.dtype = in_blocks ? DType::kF8_128 : floats_of(made.scales);
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
                      std::span<const std::byte> scales, std::span<std::byte> bytes, ThreadPool* pool) const {
  const int64_t count = source.scales.elements() / source.experts;
  std::vector<F8Scales> grids(static_cast<size_t>(source.experts), source.grid);  // by expert
  for (int64_t i = 0; i < source.experts * count; ++i) {
    std::vector<float>& values = grids[static_cast<size_t>(i / count)].values;
    if (i % count == 0) {
      values.resize(static_cast<size_t>(count));
      read_scales(source.scales, scales.data() + static_cast<size_t>(i) * scale_bytes(source.scales), values);
    }
    const float scale = values[static_cast<size_t>(i % count)];
    if (std::abs(scale) * kMostE4M3 <= std::numeric_limits<float>::max()) continue;
    throw_error(ErrorKind::kInvalidInput,
                "{}: tensor {}: scale {} is {}; a number that keeps {} times it within F32 was expected: is "
                "the file damaged?",
                path_, quote_text(source.scales.name), i, scale, kMostE4M3);
  }
  const int64_t rows = source.experts * source.rows, columns = source.columns,
                width = row_bytes(dtype, columns);
  std::atomic<int64_t> bad_row = rows;  // the first, or one of them
  const auto make_rows = [&](int64_t begin, int64_t end, int) {
    std::vector<float> floats(static_cast<size_t>(dtype == DType::kF8_128 ? 0 : columns));
    for (int64_t row = begin; row < end; ++row) {
      const int64_t expert = row / source.rows, of_expert = row % source.rows;
      const std::byte* from = numbers.data() + expert * source.rows * columns;
      const F8Scales& grid = grids[static_cast<size_t>(expert)];
      if (has_nan(numbers.subspan(static_cast<size_t>(row * columns), static_cast<size_t>(columns))))
        bad_row = row;
      if (dtype == DType::kF8_128) {
        join_f8(from, grid, of_expert, 1, columns, bytes.data() + row * width);
      } else {
        dequantize_f8(from, grid, of_expert, 1, columns, floats.data());
        from_floats(floats, dtype, bytes.data() + row * width);
      }
    }
  };
  constexpr int64_t kRows = 64;  // at once
  if (pool != nullptr) {
    pool->parallel_for(rows, kRows, make_rows);
  } else {
    make_rows(0, rows, 0);
  }
  if (bad_row == rows) return;
  throw_error(ErrorKind::kInvalidInput,
              "{}: tensor {}: row {} has a NaN; numbers were expected: is the file damaged?", path_,
              quote_text(source.numbers.name), bad_row.load());
}

}  // namespace qiao
