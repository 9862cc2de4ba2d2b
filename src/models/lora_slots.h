// Which modules of a model may have a LoRA adapter: their names in either format, and the rows that they
// stand for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "models/config.h"
#include "models/families.h"
#include "models/shards.h"

namespace qiao {

// One module that some file of the family may have.
struct LoraSlot {
  enum class Place : uint8_t { kQkv, kAttentionOutput, kGateUp, kDown, kSharedGateUp, kSharedDown };
  // "layers.0.self_attn.q_proj", "blk.0.attn_q"; empty: the format has no such name.
  std::string hugging_face_stem, gguf_stem;
  int64_t layer = 0;
  Place place = Place::kQkv;  // rows [first_row, first_row + rows) of this layer of the decoder
  int64_t first_row = 0, rows = 0, columns = 0;
  int64_t rotary_rows = 0;  // the first of them, those of heads that rotate
};

// Layer by layer, in the order of rows. Fused modules (qkv_proj) stand beside the parts that they fuse.
std::vector<LoraSlot> lora_slots(const Family& family, const DecoderConfig& config);

// What of a module's rows and columns a rank has, one behind the other, and the first of those rows in its
// layer. A module that fuses several has some rows of each, which lie together.
struct LoraPart {
  std::vector<Range> rows;
  Range columns;
  int64_t first_row = 0;
};
LoraPart lora_part(const LoraSlot& slot, const DecoderConfig& config, const Shards& shards);

// A module that these files do have.
struct LoraModule {
  std::string name;       // as PEFT has it, behind its prefix: "model.layers.0.self_attn.q_proj"
  std::string gguf_name;  // as llama.cpp's adapters have it
  std::string tensor;     // its weight in the files
  int64_t rows = 0, columns = 0;
  int64_t rotary_rows = 0;  // the first of them, which llama.cpp's files have in pairs (rotary_rows.h)
  int64_t paired_rows = 0;  // these, where the files at hand are such
};
std::vector<LoraModule> lora_modules(const ModelFiles& files, const DecoderConfig& config);

// By the name that an adapter has for it; null where there is none. PEFT's names may have another beginning:
// it differs with what the language model lies in.
const LoraModule* find_lora_module(const std::vector<LoraModule>& modules, std::string_view name,
                                   bool gguf_name);

}  // namespace qiao
