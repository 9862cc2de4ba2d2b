#include "models/tensor_loader.h"

#include <algorithm>
#include <charconv>
#include <functional>

#include "base/error.h"
#include "base/quote.h"
#include "base/units.h"
#include "tensor/floats.h"

namespace qiao {
namespace {

std::vector<std::byte> converted_floats(DType from, DType to, const std::byte* bytes, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  to_floats(from, bytes, values);
  std::vector<std::byte> made(static_cast<size_t>(row_bytes(to, count)));
  from_floats(values, to, made.data());
  return made;
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

const TensorInfo& TensorLoader::need(const std::string& name, const std::vector<int64_t>& shape) {
  if (listing_ != nullptr) return list(name, shape);
  const TensorInfo* tensor = files_.find(name);
  if (tensor == nullptr) {
    throw_error(ErrorKind::kInvalidInput, "{}: tensor {} is missing; [{}] was expected",
                files_.path().string(), name, fmt::join(shape, ", "));
  }
  if (tensor->shape != shape) {
    throw_error(ErrorKind::kInvalidInput, "{}: tensor {} is {}; [{}] was expected", files_.path().string(),
                name, shape_text(*tensor), fmt::join(shape, ", "));
  }
  if (!tensor->unsupported.empty() || (!is_dense_float(tensor->dtype) && !traits(tensor->dtype).quantized)) {
    throw_error(ErrorKind::kUnsupported, "{}: tensor {} is {}; floats or a block format were expected",
                files_.path().string(), name, shape_text(*tensor));
  }
  if (checking_ && used_.insert(name).second) total_ += tensor->bytes;
  return *tensor;
}

TensorLoader::Segment TensorLoader::segment(const std::string& stem, int64_t rows, int64_t columns) {
  return {{&need(stem + ".weight", {rows, columns})}, rows};
}

TensorLoader::Segment TensorLoader::stacked(const std::string& stem, int64_t experts, int64_t rows,
                                            int64_t columns) {
  const std::string name = has(stem, "") ? stem : stem + ".weight";
  return {{&need(name, {experts, rows, columns})}, rows};
}

Compute TensorLoader::compute_for(DType dtype) const {
  using Policy = DecoderOptions::Policy;
  if (options_.compute == Policy::kF32) return Compute::kF32;
  if (dtype == DType::kBF16) return Compute::kBF16;
  if (traits(dtype).quantized && options_.compute != Policy::kBF16) return Compute::kQ8;
  return Compute::kF32;
}

Compute TensorLoader::attention_compute(const nn::LinearLayer& projections) const {
  using Policy = DecoderOptions::Policy;
  if (options_.compute == Policy::kF32) return Compute::kF32;
  const bool rounded = !projections.pieces.empty() && projections.pieces.front().compute == Compute::kBF16;
  return rounded || options_.compute == Policy::kBF16 ? Compute::kBF16 : Compute::kF32;
}

std::vector<nn::WeightPiece> TensorLoader::pieces(const std::vector<Segment>& segments, int64_t experts,
                                                  int64_t columns) {
  const auto check_dtypes = [&](const Segment& segment) {
    const TensorInfo& first = *segment.tensors.front();
    for (const TensorInfo* tensor : segment.tensors) {
      if (tensor->dtype == first.dtype) continue;
      throw_error(ErrorKind::kUnsupported, "{}: tensors {} and {} are {} and {}; one type was expected",
                  files_.path().string(), first.name, tensor->name, first.type_name(), tensor->type_name());
    }
    if (columns % traits(first.dtype).block_elements != 0) {
      throw_error(ErrorKind::kInvalidInput, "{}: tensor {} is {}; rows of whole blocks of {} were expected",
                  files_.path().string(), first.name, shape_text(first), traits(first.dtype).block_elements);
    }
  };
  std::vector<nn::WeightPiece> pieces;
  int64_t first_row = 0;
  for (size_t begin = 0, end = 0; begin < segments.size(); begin = end) {
    const DType dtype = kept_as(segments[begin].tensors.front()->dtype);
    for (end = begin; end < segments.size(); ++end) {
      check_dtypes(segments[end]);
      const DType next = kept_as(segments[end].tensors.front()->dtype);
      if (!may_share(dtype, next) || compute_for(dtype) != compute_for(next)) break;
    }
    if (checking_) continue;
    WeightSource source{.experts = experts, .columns = columns, .parts = {}};
    std::vector<std::vector<std::byte>> converted;  // what is laid out in another dtype than the file's
    source.done_with = [this](const std::byte* bytes, int64_t count) { release_bytes(bytes, count); };
    for (int64_t expert = 0; expert < experts; ++expert) {
      for (size_t i = begin; i < end; ++i) {
        const Segment& segment = segments[i];
        const bool one_by_one = static_cast<int64_t>(segment.tensors.size()) == experts;
        const TensorInfo& tensor = *segment.tensors[one_by_one ? static_cast<size_t>(expert) : 0];
        const int64_t bytes = segment.rows * row_bytes(tensor.dtype, columns);
        const std::byte* data = files_.bytes(tensor).data() + (one_by_one ? 0 : expert * bytes);
        if (const DType kept = kept_as(tensor.dtype); kept != tensor.dtype) {
          converted.push_back(converted_floats(tensor.dtype, kept, data, segment.rows * columns));
          data = converted.back().data();
        }
        source.parts.push_back({kept_as(tensor.dtype), segment.rows, data});
      }
    }
    nn::WeightPiece piece{backend_->make_weight(source), compute_for(dtype), first_row};
    tell_laid_out(std::span(segments).subspan(begin, end - begin), *piece.weight);
    first_row += piece.weight->rows();
    laid_out_ += piece.weight->bytes();
    pieces.push_back(std::move(piece));
    for (size_t i = begin; i < end; ++i)
      for (const TensorInfo* tensor : segments[i].tensors) done_with(*tensor);
  }
  return pieces;
}

std::vector<float> TensorLoader::floats(const TensorInfo& tensor) {
  if (!is_dense_float(tensor.dtype)) {
    throw_error(ErrorKind::kUnsupported, "{}: tensor {} is {}; F32, F16 or BF16 was expected",
                files_.path().string(), tensor.name, shape_text(tensor));
  }
  if (checking_) return {};
  size_t count = 1;
  for (const int64_t size : tensor.shape) count *= static_cast<size_t>(size);
  std::vector<float> values(count);
  to_floats(tensor.dtype, files_.bytes(tensor).data(), values);
  done_with(tensor);
  return values;
}

std::vector<float> TensorLoader::matrix(const std::string& stem, int64_t rows, int64_t columns) {
  return floats(need(stem + ".weight", {rows, columns}));
}

nn::Parameter TensorLoader::parameter(const std::string& stem, std::string_view suffix, int64_t count) {
  return joined_parameter({{stem, count}}, suffix);
}

nn::Parameter TensorLoader::joined_parameter(const std::vector<std::pair<std::string, int64_t>>& stems,
                                             std::string_view suffix) {
  std::vector<float> values;
  for (const auto& [stem, count] : stems) {
    const std::vector<float> part = floats(need(fmt::format("{}{}", stem, suffix), {count}));
    values.insert(values.end(), part.begin(), part.end());
  }
  if (checking_) return {};
  laid_out_ += values.size() * sizeof(float);
  nn::Parameter made = nn::Parameter::upload(*backend_, values);
  int64_t first = 0;
  for (const auto& [stem, count] : stems) {
    if (options_.laid_out) {
      LaidOutTensor tensor;
      tensor.source = files_.find(fmt::format("{}{}", stem, suffix));
      tensor.parameter = made.tensor;
      tensor.first_row = first;
      tensor.rows = count;
      options_.laid_out(tensor);
    }
    first += count;
  }
  return made;
}

DType TensorLoader::kept_as(DType dtype) const {
  return is_dense_float(dtype) ? options_.float_weights.value_or(dtype) : dtype;
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
                         .rows = segment.rows});
      row += segment.rows;
    }
  }
}

void TensorLoader::done_with(const TensorInfo& tensor) {
  files_.release(tensor);
  done_ += tensor.bytes;
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
  const uint64_t free = backend_->describe().free_bytes;
  if (free != 0 && total_ > free) {
    double elements = 0;
    for (const std::string& name : used_) elements += static_cast<double>(files_.find(name)->elements());
    std::string ways;
    for (const DType smaller : {DType::kQ8_0, DType::kQ4_K}) {
      const DTypeTraits& kind = traits(smaller);
      const double bytes =
          elements / static_cast<double>(kind.block_elements) * static_cast<double>(kind.block_bytes);
      if (bytes < static_cast<double>(total_))
        ways +=
            fmt::format("; as {} they would take {}", kind.name, format_bytes(static_cast<uint64_t>(bytes)));
    }
    throw_error(ErrorKind::kTooLarge, "{}: its weights take {}, chip {} has {} free{}",
                files_.path().string(), format_bytes(total_), backend_->chip(), format_bytes(free), ways);
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
