#include "models/lora_slots.h"

#include "models/tensor_loader.h"

namespace qiao {
namespace {

std::string with_layer(std::string_view stem, int64_t layer) {
  std::string name(stem);
  if (!name.empty()) name.replace(name.find("{}"), 2, fmt::to_string(layer));
  return name;
}

class SlotList {
 public:
  SlotList(const Family& family, const DecoderConfig& config) {
    const TensorNames &hf = family.hugging_face_names, &gguf = family.gguf_names;
    const int64_t q = config.num_attention_heads * config.head_dim,
                  kv = config.num_key_value_heads * config.head_dim, width = config.hidden_size;
    using Place = LoraSlot::Place;
    for (layer_ = 0; layer_ < config.num_hidden_layers; ++layer_) {
      add(hf.q, gguf.q, {.place = Place::kQkv, .rows = q, .columns = width, .rotary_rows = q});
      add(hf.k, gguf.k,
          {.place = Place::kQkv, .first_row = q, .rows = kv, .columns = width, .rotary_rows = kv});
      add(hf.v, gguf.v, {.place = Place::kQkv, .first_row = q + kv, .rows = kv, .columns = width});
      add(hf.qkv, gguf.qkv,
          {.place = Place::kQkv, .rows = q + 2 * kv, .columns = width, .rotary_rows = q + kv});
      add(hf.attention_output, gguf.attention_output,
          {.place = Place::kAttentionOutput, .rows = width, .columns = q});
      if (!config.layer_is_moe[static_cast<size_t>(layer_)]) {
        add_mlp({hf.gate, hf.up, hf.gate_up, hf.down}, {gguf.gate, gguf.up, gguf.gate_up, gguf.down},
                Place::kGateUp, Place::kDown, config.intermediate_size, width);
      } else if (config.shared_intermediate_size > 0) {
        add_mlp({hf.shared_gate, hf.shared_up, "", hf.shared_down},
                {gguf.shared_gate, gguf.shared_up, "", gguf.shared_down}, Place::kSharedGateUp,
                Place::kSharedDown, config.shared_intermediate_size, width);
      }
    }
  }

  std::vector<LoraSlot> take() { return std::move(slots_); }

 private:
  struct MlpNames {
    std::string_view gate, up, gate_up, down;
  };
  void add_mlp(const MlpNames& hf, const MlpNames& gguf, LoraSlot::Place gate_up, LoraSlot::Place down,
               int64_t inner, int64_t width) {
    add(hf.gate, gguf.gate, {.place = gate_up, .rows = inner, .columns = width});
    add(hf.up, gguf.up, {.place = gate_up, .first_row = inner, .rows = inner, .columns = width});
    add(hf.gate_up, gguf.gate_up, {.place = gate_up, .rows = 2 * inner, .columns = width});
    add(hf.down, gguf.down, {.place = down, .rows = width, .columns = inner});
  }

  void add(std::string_view hf, std::string_view gguf, LoraSlot slot) {
    slot.hugging_face_stem = with_layer(hf, layer_);
    slot.gguf_stem = with_layer(gguf, layer_);
    slot.layer = layer_;
    slots_.push_back(std::move(slot));
  }

  std::vector<LoraSlot> slots_;
  int64_t layer_ = 0;
};

}  // namespace

std::vector<LoraSlot> lora_slots(const Family& family, const DecoderConfig& config) {
  return SlotList(family, config).take();
}

LoraPart lora_part(const LoraSlot& slot, const DecoderConfig& config, const Shards& shards) {
  const int64_t dim = config.head_dim, q = config.num_attention_heads * dim,
                kv = config.num_key_value_heads * dim;
  const auto behind = [](int64_t before, const Range& range, int64_t unit) {
    return Range{before + range.first * unit, range.count * unit};
  };
  LoraPart part = {{}, {0, slot.columns}, 0};
  std::vector<Range> own = {{0, slot.rows}};  // of the layer's rows
  switch (slot.place) {
    case LoraSlot::Place::kQkv:
      own = {behind(0, shards.heads, dim), behind(q, shards.kv_heads, dim),
             behind(q + kv, shards.kv_heads, dim)};
      break;
    case LoraSlot::Place::kGateUp:
      own = {shards.ffn, behind(config.intermediate_size, shards.ffn, 1)};
      break;
    case LoraSlot::Place::kSharedGateUp:
      own = {shards.shared_ffn, behind(config.shared_intermediate_size, shards.shared_ffn, 1)};
      break;
    case LoraSlot::Place::kAttentionOutput:
      part.columns = behind(0, shards.heads, dim);
      break;
    case LoraSlot::Place::kDown:
      part.columns = shards.ffn;
      break;
    case LoraSlot::Place::kSharedDown:
      part.columns = shards.shared_ffn;
      break;
  }
  int64_t before = 0;
  for (const Range& rows : own) {
    if (rows.first >= slot.first_row && rows.first + rows.count <= slot.first_row + slot.rows) {
      if (part.rows.empty()) part.first_row = before;
      part.rows.push_back({rows.first - slot.first_row, rows.count});
    }
    before += rows.count;
  }
  return part;
}

std::vector<LoraModule> lora_modules(const ModelFiles& files, const DecoderConfig& config) {
  const Family& family = find_family(ConfigReader(files));
  const bool gguf = files.kind() == ModelFiles::Kind::kGguf;
  const std::string_view root = decoder_root(files);
  // Older checkpoints of multimodal models have the root that Transformers' modules no longer have.
  const std::string_view peft_root = gguf                              ? kDecoderRoots.front()
                                     : root == "language_model.model." ? "model.language_model."
                                                                       : root;
  const bool pairs = family.gguf_rope == Rope::Layout::kInterleaved;
  std::vector<LoraModule> modules;
  for (const LoraSlot& slot : lora_slots(family, config)) {
    if (slot.hugging_face_stem.empty() || (gguf && slot.gguf_stem.empty())) continue;
    LoraModule module{
        .name = fmt::format("{}{}", peft_root, slot.hugging_face_stem),
        .gguf_name = slot.gguf_stem,
        .tensor = fmt::format("{}{}.weight", root, gguf ? slot.gguf_stem : slot.hugging_face_stem),
        .rows = slot.rows,
        .columns = slot.columns,
        .rotary_rows = pairs ? slot.rotary_rows : 0,
        .paired_rows = pairs && gguf ? slot.rotary_rows : 0};
    const TensorInfo* tensor = files.find(module.tensor);
    if (tensor == nullptr || tensor->shape != std::vector<int64_t>{slot.rows, slot.columns}) continue;
    modules.push_back(std::move(module));
  }
  return modules;
}

const LoraModule* find_lora_module(const std::vector<LoraModule>& modules, std::string_view name,
                                   bool gguf_name) {
  const auto tail = [](std::string_view text) {
    const size_t at = text.find("layers.");
    return at == std::string_view::npos ? text : text.substr(at);
  };
  for (const LoraModule& module : modules)
    if (gguf_name ? module.gguf_name == name : tail(module.name) == tail(name)) return &module;
  return nullptr;
}

}  // namespace qiao
