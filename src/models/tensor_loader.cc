#include "models/tensor_loader.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <functional>

#include "base/error.h"
#include "base/quote.h"
#include "base/units.h"
#include "formats/quantization_config.h"
#include "tensor/floats.h"
#include "tensor/fp8.h"

namespace qiao {
namespace {

// Columns of rows that lie `stride` bytes apart, one row behind the other.
std::vector<std::byte> some_columns(DType dtype, const std::byte* rows, int64_t count, int64_t stride,
                                    const Range& columns) {
  const auto skipped = static_cast<size_t>(row_bytes(dtype, columns.first)),
             width = static_cast<size_t>(row_bytes(dtype, columns.count));
  std::vector<std::byte> made(static_cast<size_t>(count) * width);
  for (int64_t row = 0; row < count; ++row)
    std::memcpy(made.data() + static_cast<size_t>(row) * width, rows + row * stride + skipped, width);
  return made;
}

// The rows of a matrix that have scales in common with `taken` (quantize_f8): no rank's weights depend on
// what it takes.
Range quantized_together(const Range& taken, int64_t rows) {
  const int64_t first = taken.first / kF8Block * kF8Block;
  const int64_t end = (taken.first + taken.count + kF8Block - 1) / kF8Block * kF8Block;
  return {first, std::min(end, rows) - first};
}

const DecoderOptions kNoOptions;
constexpr size_t kMostListed = size_t{1} << 20;  // tensors of a model, far above any published one

// Parts of these two may lie in one weight.
bool may_share(DType a, DType b) { return a == b || (traits(a).quantized && traits(b).quantized); }

}  // namespace

std::string shape_text(const TensorInfo& tensor) {
  return fmt::format("{}[{}]", tensor.type_name(), fmt::join(tensor.shape, ", "));
}

std::string_view decoder_root(const ModelFiles& files) {
  if (files.kind() == ModelFiles::Kind::kGguf) return "";
  for (const std::string_view root : kDecoderRoots)
    if (files.find(fmt::format("{}embed_tokens.weight", root)) != nullptr) return root;
  return kDecoderRoots.front();
}

TensorLoader::TensorLoader(const ModelFiles& files, Backend& backend, const DecoderOptions& options)
    : files_(files), backend_(&backend), options_(options), root_(decoder_root(files)) {}

TensorLoader::TensorLoader(const ModelFiles& files, Backend& backend, const DecoderOptions& options,
                           std::string root, std::string_view layers)
    : files_(files), backend_(&backend), options_(options), root_(std::move(root)), layers_(layers) {}

TensorLoader::TensorLoader(const ModelFiles& files, Listing& listing)
    : files_(files),
      backend_(nullptr),
      options_(kNoOptions),
      root_(kDecoderRoots.front()),
      listing_(&listing) {}

std::string TensorLoader::name(std::string_view stem, int64_t layer, int64_t expert) const {
  // The output matrix stands beside the decoder, not in it.
  std::string text;
  if (stem == "lm_head") {
    text = root_ == "language_model.model." ? "language_model.lm_head" : "lm_head";
  } else {
    text = fmt::format("{}{}", root_, stem);
  }
  for (const int64_t index : {layer, expert}) {
    const size_t place = text.find("{}");
    if (place != std::string::npos) text.replace(place, 2, fmt::to_string(index));
  }
  return text;
}

// A stacked tensor of Transformers is a parameter, not a module: its name may end without ".weight".
bool TensorLoader::has(const std::string& stem, std::string_view suffix) const {
  if (listing_ != nullptr)
    return listing_->fused && (stem.ends_with("qkv_proj") || stem.ends_with("gate_up_proj"));
  return files_.find(fmt::format("{}{}", stem, suffix)) != nullptr;
}

const TensorInfo& TensorLoader::list(const std::string& name, const std::vector<int64_t>& shape) {
  std::deque<TensorInfo>& tensors = listing_->tensors;
  if (!used_.insert(name).second) return *std::ranges::find(tensors, name, &TensorInfo::name);
  if (tensors.size() == kMostListed) {
    throw_error(ErrorKind::kTooLarge, "{}: a model of more than {} tensors", files_.path().string(),
                kMostListed);
  }
  TensorInfo& tensor = tensors.emplace_back();
  tensor.name = name;
  tensor.dtype = listing_->dtype;
  tensor.shape = shape;
  tensor.bytes = static_cast<uint64_t>(row_bytes(tensor.dtype, tensor.elements()));
  return tensor;
}

std::string TensorLoader::advice() const {
  if (files_.kind() == ModelFiles::Kind::kGguf) return "";
  return quantization_advice(files_.config(), files_.tensors());
}

const TensorInfo& TensorLoader::need(const std::string& name, const std::vector<int64_t>& shape) {
  if (listing_ != nullptr) return list(name, shape);
  const TensorInfo* tensor = files_.find(name);
  if (tensor == nullptr) {
    throw_error(ErrorKind::kInvalidInput, "{}: tensor {} is missing; [{}] was expected{}",
                files_.path().string(), name, fmt::join(shape, ", "), advice());
  }
  if (tensor->shape != shape) {
    throw_error(ErrorKind::kInvalidInput, "{}: tensor {} is {}; [{}] was expected{}", files_.path().string(),
                name, shape_text(*tensor), fmt::join(shape, ", "), advice());
  }
  if (tensor->dtype == DType::kF8_E4M3 && tensor->unsupported.empty() && shape.size() > 1) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: tensor {} is {} without scales; {}_scale_inv or {}_scale was expected beside it",
                files_.path().string(), name, shape_text(*tensor), name, name);
  }
  if (!tensor->unsupported.empty() || (!is_dense_float(tensor->dtype) && !traits(tensor->dtype).quantized)) {
    throw_error(ErrorKind::kUnsupported, "{}: tensor {} is {}; floats or a block format were expected{}",
                files_.path().string(), name, shape_text(*tensor), advice());
  }
  if (checking_) used_.insert(name);
  return *tensor;
}

TensorLoader::Segment TensorLoader::segment(const std::string& stem, int64_t rows, int64_t columns) {
  return {{&need(stem + ".weight", {rows, columns})}, rows, columns, {0, rows}, {0, columns}};
}

TensorLoader::Segment TensorLoader::narrow(Segment whole, const Range& rows, const Range& columns) {
  whole.taken_rows = rows;
  whole.taken_columns = columns;
  return whole;
}

uint64_t TensorLoader::Segment::bytes(int64_t experts) const {
  const int64_t count = std::ssize(tensors) == experts ? 1 : experts;  // of experts in a tensor
  uint64_t all = 0;
  for (const TensorInfo* tensor : tensors)
    all += static_cast<uint64_t>(count * taken_rows.count * row_bytes(tensor->dtype, taken_columns.count));
  return all;
}

TensorLoader::Segment TensorLoader::stacked(const std::string& stem, int64_t experts, int64_t rows,
                                            int64_t columns) {
  const std::string name = has(stem, "") ? stem : stem + ".weight";
  return {{&need(name, {experts, rows, columns})}, rows, columns, {0, rows}, {0, columns}};
}

Compute TensorLoader::compute_for(DType dtype) const {
  using Policy = DecoderOptions::Policy;
  if (options_.compute == Policy::kF32) return Compute::kF32;
  if (dtype == DType::kBF16) return Compute::kBF16;
  if (dtype == DType::kF8_128 && options_.compute != Policy::kBF16) return Compute::kF8;
  if (traits(dtype).quantized && options_.compute != Policy::kBF16) return Compute::kQ8;
  return Compute::kF32;
}

Compute TensorLoader::attention_compute(const nn::LinearLayer& projections) const {
  using Policy = DecoderOptions::Policy;
  if (options_.compute == Policy::kF32) return Compute::kF32;
  const Compute own = projections.pieces.empty() ? Compute::kF32 : projections.pieces.front().compute;
  const bool rounded = own == Compute::kBF16 || own == Compute::kF8;
  return rounded || options_.compute == Policy::kBF16 ? Compute::kBF16 : Compute::kF32;
}

std::vector<std::byte> TensorLoader::converted(DType from, DType to, const std::byte* bytes, int64_t rows,
                                               int64_t columns) {
  std::vector<std::byte> made(static_cast<size_t>(rows * row_bytes(to, columns)));
  const auto convert = [&](int64_t first, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count * columns));
    to_floats(from, bytes + first * row_bytes(from, columns), values);
    std::byte* const out = made.data() + first * row_bytes(to, columns);
    if (to != DType::kF8_128) return from_floats(values, to, out);
    const auto quantize = options_.float_weights == DType::kBF16 ? quantize_f8_of_bf16 : quantize_f8;
    quantize(values, count, columns, out);
  };
  if (!pool_) pool_ = std::make_unique<ThreadPool>(0);
  pool_->parallel_for((rows + kF8Block - 1) / kF8Block, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) convert(i * kF8Block, std::min(kF8Block, rows - i * kF8Block));
  });
  return made;
}

std::vector<nn::WeightPiece> TensorLoader::pieces(const std::vector<Segment>& segments, int64_t experts,
                                                  int64_t columns, Part part) {
  const auto check_dtypes = [&](const Segment& segment) {
    const TensorInfo& first = *segment.tensors.front();
    for (const TensorInfo* tensor : segment.tensors) {
      if (tensor->dtype == first.dtype) continue;
      throw_error(ErrorKind::kUnsupported, "{}: tensors {} and {} are {} and {}; one type was expected",
                  files_.path().string(), first.name, tensor->name, first.type_name(), tensor->type_name());
    }
    if (segment.columns % traits(first.dtype).block_elements != 0) {
      throw_error(ErrorKind::kInvalidInput, "{}: tensor {} is {}; rows of whole blocks of {} were expected",
                  files_.path().string(), first.name, shape_text(first), traits(first.dtype).block_elements);
    }
  };
  std::vector<nn::WeightPiece> pieces;
  int64_t first_row = 0;
  for (size_t begin = 0, end = 0; begin < segments.size(); begin = end) {
    const DType dtype = kept_as(*segments[begin].tensors.front(), segments[begin].columns, part);
    for (end = begin; end < segments.size(); ++end) {
      check_dtypes(segments[end]);
      const DType next = kept_as(*segments[end].tensors.front(), segments[end].columns, part);
      if (!may_share(dtype, next) || compute_for(dtype) != compute_for(next)) break;
    }
    if (checking_) {
      for (size_t i = begin; i < end; ++i) {
        const TensorInfo& tensor = *segments[i].tensors.front();
        const uint64_t bytes = segments[i].bytes(experts);
        total_ += bytes;
        if (kept_as(tensor, segments[i].columns, part) != DType::kF8_128) continue;
        quantizes_ = true;
        const int64_t rows = experts * segments[i].taken_rows.count;
        saved_ += bytes - static_cast<uint64_t>(rows * row_bytes(DType::kF8_128, columns));
      }
      continue;
    }
    WeightSource source{
        .experts = experts, .columns = columns, .parts = {}, .square_scales = options_.quantize_f8};
    std::vector<std::vector<std::byte>> made;  // what is laid out in another dtype than the file's
    source.done_with = [this](const std::byte* bytes, int64_t count) { release_bytes(bytes, count); };
    for (int64_t expert = 0; expert < experts; ++expert) {
      for (size_t i = begin; i < end; ++i) {
        const Segment& segment = segments[i];
        const bool one_by_one = static_cast<int64_t>(segment.tensors.size()) == experts;
        const TensorInfo& tensor = *segment.tensors[one_by_one ? static_cast<size_t>(expert) : 0];
        const Range& taken = segment.taken_rows;
        const DType kept = kept_as(tensor, segment.columns, part);
        const Range read =
            kept == DType::kF8_128 && kept != tensor.dtype ? quantized_together(taken, segment.rows) : taken;
        const int64_t stride = row_bytes(tensor.dtype, segment.columns);
        const std::byte* data =
            files_.bytes(tensor).data() + ((one_by_one ? 0 : expert * segment.rows) + read.first) * stride;
        if (columns != segment.columns) {
          made.push_back(some_columns(tensor.dtype, data, read.count, stride, segment.taken_columns));
          data = made.back().data();
        }
        if (kept != tensor.dtype) {
          made.push_back(converted(tensor.dtype, kept, data, read.count, columns));
          data = made.back().data() + (taken.first - read.first) * row_bytes(kept, columns);
        }
        source.parts.push_back({kept, taken.count, data});
        // Of an FP8 checkpoint they may be of single rows.
        if (kept == DType::kF8_128 && source.square_scales)
          source.square_scales = has_square_scales(data, taken.count, columns);
      }
    }
    nn::WeightPiece piece{backend_->make_weight(source), compute_for(dtype), first_row};
    tell_laid_out(std::span(segments).subspan(begin, end - begin), *piece.weight);
    first_row += piece.weight->rows();
    laid_out_ += piece.weight->bytes();
    pieces.push_back(std::move(piece));
    for (size_t i = begin; i < end; ++i) {
      const uint64_t bytes = segments[i].bytes(experts) / segments[i].tensors.size();
      for (const TensorInfo* tensor : segments[i].tensors) done_with(*tensor, bytes);
    }
  }
  return pieces;
}

std::vector<float> TensorLoader::floats(const TensorInfo& tensor) {
  if (!is_dense_float(tensor.dtype)) {
    throw_error(ErrorKind::kUnsupported, "{}: tensor {} is {}; F32, F16 or BF16 was expected",
                files_.path().string(), tensor.name, shape_text(tensor));
  }
  if (checking_) {
    total_ += tensor.bytes;
    return {};
  }
  size_t count = 1;
  for (const int64_t size : tensor.shape) count *= static_cast<size_t>(size);
  std::vector<float> values(count);
  to_floats(tensor.dtype, files_.bytes(tensor).data(), values);
  done_with(tensor, tensor.bytes);
  return values;
}

std::vector<float> TensorLoader::matrix(const std::string& stem, int64_t rows, int64_t columns) {
  return floats(need(stem + ".weight", {rows, columns}));
}

nn::Parameter TensorLoader::parameter(const std::string& stem, std::string_view suffix, int64_t count) {
  return joined_parameter({{stem, count, {0, count}}}, suffix);
}

nn::Parameter TensorLoader::joined_parameter(const std::vector<ParameterPart>& parts,
                                             std::string_view suffix) {
  std::vector<float> values;
  for (const auto& [stem, count, taken] : parts) {
    const std::vector<float> part = floats(need(fmt::format("{}{}", stem, suffix), {count}));
    if (!checking_)
      values.insert(values.end(), part.begin() + taken.first, part.begin() + taken.first + taken.count);
  }
  if (checking_) return {};
  laid_out_ += values.size() * sizeof(float);
  nn::Parameter made = nn::Parameter::upload(*backend_, values);
  int64_t first = 0;
  for (const auto& [stem, count, taken] : parts) {
    if (options_.laid_out) {
      LaidOutTensor tensor;
      tensor.source = files_.find(fmt::format("{}{}", stem, suffix));
      tensor.parameter = made.tensor;
      tensor.first_row = first;
      tensor.rows = taken.count;
      tensor.source_row = taken.first;
      tensor.source_rows = count;
      tensor.source_columns = 1;
      tensor.columns = {0, 1};
      options_.laid_out(tensor);
    }
    first += taken.count;
  }
  return made;
}

void TensorLoader::leave_elsewhere(const std::vector<ParameterPart>& parts, std::string_view suffix) const {
  if (!options_.laid_out) return;
  for (const auto& [stem, count, taken] : parts) {
    LaidOutTensor tensor;
    tensor.source = files_.find(fmt::format("{}{}", stem, suffix));
    tensor.source_rows = count;
    tensor.source_columns = 1;
    options_.laid_out(tensor);
  }
}

DType TensorLoader::kept_as(const TensorInfo& tensor, int64_t columns, Part part) const {
  if (options_.quantize_f8 && part == Part::kLayer) {
    if (is_dense_float(tensor.dtype) && columns % kF8Block == 0) return DType::kF8_128;
    if (traits(tensor.dtype).quantized && tensor.dtype != DType::kF8_128) {
      throw_error(
          ErrorKind::kUnsupported,
          "{}: tensor {} is {}; to quantize a model to FP8 floats are needed, not another block format",
          files_.path().string(), tensor.name, shape_text(tensor));
    }
  }
  return is_dense_float(tensor.dtype) ? options_.float_weights.value_or(tensor.dtype) : tensor.dtype;
}

void TensorLoader::tell_laid_out(std::span<const Segment> segments, Weight& weight) const {
  if (!options_.laid_out) return;
  for (int64_t expert = 0; expert < weight.experts(); ++expert) {
    int64_t row = 0;
    for (const Segment& segment : segments) {
      const bool one_by_one = std::ssize(segment.tensors) == weight.experts();
      options_.laid_out({.source = segment.tensors[one_by_one ? static_cast<size_t>(expert) : 0],
                         .weight = &weight,
                         .parameter = {},
                         .expert = expert,
                         .first_row = row,
                         .rows = segment.taken_rows.count,
                         .source_row = segment.taken_rows.first,
                         .source_rows = segment.rows,
                         .source_columns = segment.columns,
                         .columns = segment.taken_columns});
      row += segment.taken_rows.count;
    }
  }
}

void TensorLoader::done_with(const TensorInfo& tensor, uint64_t bytes) {
  files_.release(tensor);
  done_ += bytes;
  if (options_.progress) options_.progress(done_, total_);
}

void TensorLoader::release_bytes(const std::byte* bytes, int64_t count) const {
  for (const MappedFile& file : files_.files()) {
    const std::byte* start = file.bytes().data();
    if (std::less<>()(bytes, start) || !std::less<>()(bytes, start + file.size())) continue;  // or a copy
    file.release(static_cast<size_t>(bytes - start), static_cast<size_t>(count));
  }
}

void TensorLoader::start_loading() {
  checking_ = false;
  if (options_.quantize_f8 && !quantizes_) {
    throw_error(
        ErrorKind::kUnsupported,
        "{}: none of its layers' matrices can be quantized to FP8: rows of whole blocks of {} are needed",
        files_.path().string(), kF8Block);
  }
  const uint64_t free = backend_->describe().free_bytes, wanted = total_ - saved_;
  if (free != 0 && wanted > free) {
    double elements = 0;
    for (const std::string& name : used_) elements += static_cast<double>(files_.find(name)->elements());
    std::string ways;
    for (const DType smaller : {DType::kQ8_0, DType::kQ4_K}) {
      const DTypeTraits& kind = traits(smaller);
      const double bytes =
          elements / static_cast<double>(kind.block_elements) * static_cast<double>(kind.block_bytes);
      if (bytes < static_cast<double>(wanted))
        ways +=
            fmt::format("; as {} they would take {}", kind.name, format_bytes(static_cast<uint64_t>(bytes)));
    }
    throw_error(ErrorKind::kTooLarge, "{}: its weights take {}, chip {} has {} free{}",
                files_.path().string(), format_bytes(wanted), backend_->chip(), format_bytes(free), ways);
  }
}

int64_t TensorLoader::layer_of(std::string_view tensor) const {
  for (const std::string& start : {fmt::format("{}{}", root_, layers_), std::string("blk.")}) {
    if (!tensor.starts_with(start)) continue;
    int64_t layer = -1;
    const std::string_view rest = tensor.substr(start.size());
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
    if (error == std::errc() && end != rest.data() + rest.size() && *end == '.') return layer;
  }
  return -1;
}

void TensorLoader::will_need_layer(int64_t layer) const {
  for (const TensorInfo& tensor : files_.tensors())
    if (layer_of(tensor.name) == layer) files_.will_need(tensor);
}

void TensorLoader::refuse_unknown(int64_t layers) const {
  for (const TensorInfo& tensor : files_.tensors()) {
    const int64_t layer = layer_of(tensor.name);
    if (layer < 0 || layer >= layers || used_.contains(tensor.name)) continue;
    // Rotary frequencies that older checkpoints saved; the configuration has them.
    if (tensor.name.ends_with("rotary_emb.inv_freq") || tensor.name.ends_with("attn_rot_embd.weight"))
      continue;
    throw_error(ErrorKind::kUnsupported, "{}: tensor {} ({}) belongs to no model of this architecture",
                files_.path().string(), quote_text(tensor.name), shape_text(tensor));
  }
}

}  // namespace qiao
