#include "models/lora.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/quote.h"
#include "base/units.h"
#include "models/lora_slots.h"
#include "models/rotary_rows.h"
#include "models/tensor_loader.h"
#include "tensor/floats.h"
#include "tensor/half.h"

namespace qiao {
namespace {

// The rows of a layer that one module of a file stands for.
struct LoraTarget {
  nn::LinearLayer* layer = nullptr;
  int64_t rows = 0, columns = 0;  // of the module
  LoraPart part;                  // of it, here
  int64_t rotary_rows = 0;        // the first rows, those of heads that rotate
  int64_t order = 0;
};

struct LoraJob {
  const LoraPair* pair;
  LoraTarget target;
  float scale;
};

// Every module that an adapter may change, by its name in files. A name may have two meanings (Phi-3's ffn_up
// is gate and up): the one whose rows fit is meant.
class LoraTargets {
 public:
  LoraTargets(const LoraBase& base, bool gguf, DecoderWeights& weights) {
    for (const LoraSlot& slot : lora_slots(base.family, base.config)) {
      const std::string& stem = gguf ? slot.gguf_stem : slot.hugging_face_stem;
      if (stem.empty()) continue;
      DecoderLayer& layer = weights.layers[static_cast<size_t>(slot.layer)];
      targets_[stem].push_back({layer_of(layer, slot.place), slot.rows, slot.columns,
                                lora_part(slot, base.config, weights.shards), slot.rotary_rows, count_++});
    }
  }

  // Null where there is no such module.
  const std::vector<LoraTarget>* find(std::string_view name) const {
    const auto found = targets_.find(name);
    return found == targets_.end() ? nullptr : &found->second;
  }

 private:
  static nn::LinearLayer* layer_of(DecoderLayer& layer, LoraSlot::Place place) {
    switch (place) {
      case LoraSlot::Place::kQkv:
        return &layer.attention.qkv;
      case LoraSlot::Place::kAttentionOutput:
        return &layer.attention.output;
      case LoraSlot::Place::kGateUp:
        return &layer.mlp.gate_up;
      case LoraSlot::Place::kDown:
        return &layer.mlp.down;
      case LoraSlot::Place::kSharedGateUp:
        return &layer.moe.shared.gate_up;
      case LoraSlot::Place::kSharedDown:
        return &layer.moe.shared.down;
    }
    return nullptr;
  }

  std::map<std::string, std::vector<LoraTarget>, std::less<>> targets_;
  int64_t count_ = 0;
};

std::string_view lora_refusal(std::string_view module) {
  const auto has = [&](std::string_view part) { return module.find(part) != std::string_view::npos; };
  if (has("expert") || has("_exps")) return "adapters of experts are not supported";
  if (has("embed_tokens") || has("token_embd")) return "adapters of embeddings are not supported";
  if (has("lm_head") || module == "output") return "adapters of the output matrix are not supported";
  return "the base has no such module that takes an adapter";
}

bool is_lora_dtype(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kQ8_0;
}

// One adapter on its way into the layers.
class LoraLoader {
 public:
  LoraLoader(const LoraFiles& files, const LoraBase& base, Backend& backend, DecoderWeights& weights,
             const LoraLaidOut& laid_out)
      : files_(files), base_(base), backend_(backend), weights_(weights), laid_out_(laid_out) {
    check_architecture();
    const LoraTargets targets(base, files.gguf(), weights);
    for (const LoraPair& pair : files.pairs()) jobs_.push_back(plan(pair, targets));
    // Parts of one layer side by side, in the order of their rows.
    std::ranges::stable_sort(jobs_, {}, [](const LoraJob& job) { return job.target.order; });
    check_memory();
  }

  uint64_t load(int32_t index) {
    for (size_t begin = 0, end = 0; begin < jobs_.size(); begin = end) {
      nn::LinearLayer& layer = *jobs_[begin].target.layer;
      while (end < jobs_.size() && jobs_[end].target.layer == &layer) ++end;
      const auto place = static_cast<size_t>(index);
      if (layer.adapters.size() <= place) layer.adapters.resize(place + 1);
      layer.adapters[place] = make(std::span(jobs_).subspan(begin, end - begin));
      layer.adapters[place].number = static_cast<uint32_t>(jobs_[begin].target.order);
    }
    return bytes_;
  }

 private:
  // The files' own layout of the rows that rotate: llama.cpp's converter reorders them for some families.
  Rope::Layout layout(bool gguf) const { return gguf ? base_.family.gguf_rope : Rope::Layout::kHalf; }

  void check_architecture() const {
    if (!files_.gguf()) return;
    const std::string& name = files_.architecture();
    const Family* family = find_gguf_family(name);
    // Mistral's files have Llama's name.
    const bool fits = family == &base_.family || (family != nullptr && base_.family.gguf.empty() &&
                                                  family->gguf_rope == base_.family.gguf_rope);
    if (fits) return;
    throw_error(ErrorKind::kInvalidInput,
                "{}: general.architecture is {}: an adapter of another architecture than the model's ({})",
                files_.source(), quote_text(name), base_.family.name);
  }

  const std::vector<LoraTarget>* find(const LoraTargets& targets, std::string_view module) const {
    if (files_.gguf()) return targets.find(module);
    for (const std::string_view root : kDecoderRoots) {
      if (!module.starts_with(root)) continue;
      if (const auto* found = targets.find(module.substr(root.size()))) return found;
    }
    return nullptr;
  }

  LoraJob plan(const LoraPair& pair, const LoraTargets& targets) const {
    const std::vector<LoraTarget>* candidates = find(targets, pair.module);
    if (candidates == nullptr) {
      throw_error(ErrorKind::kUnsupported, "{}: tensor {} ({}): {}", files_.source(),
                  quote_text(pair.a->name), shape_text(*pair.a), lora_refusal(pair.module));
    }
    const auto fitting = std::ranges::find(*candidates, pair.b->shape[0], &LoraTarget::rows);
    const LoraTarget& target = fitting == candidates->end() ? candidates->front() : *fitting;
    check_shape(*pair.a, {pair.a->shape[0], target.columns});
    check_shape(*pair.b, {target.rows, pair.a->shape[0]});
    return {&pair, target, static_cast<float>(files_.scale(pair))};
  }

  void check_shape(const TensorInfo& tensor, const std::vector<int64_t>& shape) const {
    if (tensor.shape != shape) {
      throw_error(ErrorKind::kInvalidInput, "{}: tensor {} is {}; [{}] was expected", files_.source(),
                  quote_text(tensor.name), shape_text(tensor), fmt::join(shape, ", "));
    }
    if (!is_lora_dtype(tensor.dtype) || shape[1] % traits(tensor.dtype).block_elements != 0) {
      throw_error(ErrorKind::kUnsupported, "{}: tensor {} is {}; F32, F16, BF16 or Q8_0 was expected",
                  files_.source(), quote_text(tensor.name), shape_text(tensor));
    }
  }

  void check_memory() const {
    uint64_t need = 0;
    for (const LoraJob& job : jobs_)
      need += job.pair->a->bytes + static_cast<uint64_t>(job.pair->b->elements()) * sizeof(float);
    const uint64_t free = backend_.describe().free_bytes;
    if (free != 0 && need > free) {
      throw_error(ErrorKind::kTooLarge, "{}: its matrices take {}, chip {} has {} free", files_.source(),
                  format_bytes(need), backend_.chip(), format_bytes(free));
    }
  }

  nn::LowRankAdapter make(std::span<const LoraJob> jobs) {
    nn::LowRankAdapter made;
    const Range& columns = jobs.front().target.part.columns;
    WeightSource a{.experts = 1, .columns = columns.count, .parts = {}};
    int64_t rank = 0;
    std::vector<std::vector<std::byte>> cut;
    for (const LoraJob& job : jobs) {
      const TensorInfo& info = *job.pair->a;
      DType dtype = info.dtype;
      const std::byte* bytes = files_.bytes(info).data();
      if (columns.count < info.shape[1]) {
        const auto values = some_of(files_.floats(info), info.shape[1], {{0, info.shape[0]}}, columns);
        bytes = cut.emplace_back(narrowed(values, dtype)).data();
      }
      a.parts.push_back({dtype, info.shape[0], bytes});
      made.parts.push_back({make_b(job), job.target.part.first_row, rank});
      rank += info.shape[0];
    }
    made.a = backend_.make_weight(a);
    made.first_column = static_cast<uint32_t>(columns.first);
    bytes_ += made.a->bytes();
    for (size_t i = 0; laid_out_ && i < jobs.size(); ++i) {
      const nn::LowRankAdapter::Part& part = made.parts[i];
      laid_out_({jobs[i].pair, made.a.get(), part.first_rank, part.b.get(), jobs[i].scale,
                 jobs[i].target.part.rows, columns});
    }
    if (weights_.shards.size > 1) {  // what of them is on several ranks has an addend on each
      weights_.summed.push_back(made.a.get());
      for (const nn::LowRankAdapter::Part& part : made.parts) weights_.summed.push_back(part.b.get());
    }
    return made;
  }

  static std::vector<float> some_of(const std::vector<float>& values, int64_t width,
                                    const std::vector<Range>& rows, const Range& columns) {
    std::vector<float> taken;
    for (const Range& range : rows) {
      for (int64_t row = range.first; row < range.first + range.count; ++row) {
        const auto begin = values.begin() + row * width + columns.first;
        taken.insert(taken.end(), begin, begin + columns.count);
      }
    }
    return taken;
  }

  // B with the scale in it, its rows as the base has them, and of them this rank's.
  std::shared_ptr<Weight> make_b(const LoraJob& job) {
    const TensorInfo& info = *job.pair->b;
    std::vector<float> values = files_.floats(info);
    for (float& value : values) value *= job.scale;
    if (layout(files_.gguf()) != layout(base_.gguf)) {
      const bool to_pairs = layout(base_.gguf) == Rope::Layout::kInterleaved;
      values = reordered_rotary_rows(values, info.shape[1], job.target.rotary_rows, base_.config.head_dim,
                                     to_pairs);
    }
    values = some_of(values, info.shape[1], job.target.part.rows, {0, info.shape[1]});
    DType dtype = info.dtype;
    const std::vector<std::byte> bytes = narrowed(values, dtype);
    WeightSource source{.experts = 1, .columns = info.shape[1], .parts = {}};
    source.parts.push_back({dtype, std::ssize(values) / info.shape[1], bytes.data()});
    std::shared_ptr<Weight> made = backend_.make_weight(source);
    bytes_ += made->bytes();
    return made;
  }

  // The values in the file's half-precision type where it holds them all exactly (a scale that is a power of
  // two), else in F32.
  static std::vector<std::byte> narrowed(const std::vector<float>& values, DType& dtype) {
    const auto narrow = [&](float value) {
      return dtype == DType::kF16 ? float_to_f16(value) : float_to_bf16(value);
    };
    const auto widen = [&](uint16_t half) {
      return dtype == DType::kF16 ? f16_to_float(half) : bf16_to_float(half);
    };
    const bool is_half = dtype == DType::kF16 || dtype == DType::kBF16;
    if (!is_half || !std::ranges::all_of(values, [&](float v) { return widen(narrow(v)) == v; })) {
      dtype = DType::kF32;
      const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
      return {bytes, bytes + values.size() * sizeof(float)};
    }
    std::vector<std::byte> bytes(values.size() * sizeof(uint16_t));
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t half = narrow(values[i]);
      std::memcpy(bytes.data() + i * sizeof(half), &half, sizeof(half));
    }
    return bytes;
  }

  const LoraFiles& files_;
  const LoraBase& base_;
  Backend& backend_;
  DecoderWeights& weights_;
  const LoraLaidOut& laid_out_;
  std::vector<LoraJob> jobs_;
  uint64_t bytes_ = 0;
};

}  // namespace

uint64_t add_lora(const LoraFiles& files, const LoraBase& base, Backend& backend, int32_t index,
                  DecoderWeights& weights, const LoraLaidOut& laid_out) {
  return LoraLoader(files, base, backend, weights, laid_out).load(index);
}

}  // namespace qiao
