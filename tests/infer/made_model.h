// Tiny models of random weights, of a wanted shape, with the golden chat model's tokenizer.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "infer/language_model.h"
#include "support/temporary_directory.h"

namespace qiao::testing {

struct MadeModel {
  int64_t layers = 2, head_dim = 32;
  int64_t window = 0;        // every second layer, from the first, sees only so many tokens; 0: none
  bool all_slide = false;    // not only every second
  uint32_t seed = 1;         // of the weights
  float noise = 0.0f;        // share of other random numbers in each weight: a model that mostly agrees
  int64_t vocabulary = 320;  // more: padded
};

inline std::string made_weights(const MadeModel& shape, int64_t width, int64_t heads, int64_t kv_heads,
                                int64_t ffn) {
  std::mt19937 random(shape.seed), other(shape.seed + 1000);
  std::normal_distribution<float> normal;
  Json header = Json::object();
  std::string data;
  const auto add = [&](const std::string& name, std::vector<int64_t> dims, float scale, float mean) {
    int64_t count = 1;
    for (const int64_t dim : dims) count *= dim;
    const size_t begin = data.size();
    for (int64_t i = 0; i < count; ++i) {
      const float own = normal(random), foreign = normal(other);
      const float value = mean + scale * (own + shape.noise * foreign);
      data.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
    header[name] = {{"dtype", "F32"}, {"shape", dims}, {"data_offsets", {begin, data.size()}}};
  };
  add("model.embed_tokens.weight", {shape.vocabulary, width}, 0.4f, 0.0f);
  constexpr int64_t kTokens = 320;  // of the tokenizer; what is beyond is padding and never likely
  if (shape.vocabulary > kTokens) std::fill(data.begin() + kTokens * width * 4, data.end(), '\0');
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    const std::string name = "model.layers." + std::to_string(layer) + ".";
    add(name + "input_layernorm.weight", {width}, 0.1f, 1.0f);
    add(name + "self_attn.q_proj.weight", {heads * shape.head_dim, width}, 0.2f, 0.0f);
    add(name + "self_attn.k_proj.weight", {kv_heads * shape.head_dim, width}, 0.2f, 0.0f);
    add(name + "self_attn.v_proj.weight", {kv_heads * shape.head_dim, width}, 0.2f, 0.0f);
    add(name + "self_attn.o_proj.weight", {width, heads * shape.head_dim}, 0.2f, 0.0f);
    add(name + "post_attention_layernorm.weight", {width}, 0.1f, 1.0f);
    add(name + "mlp.gate_proj.weight", {ffn, width}, 0.2f, 0.0f);
    add(name + "mlp.up_proj.weight", {ffn, width}, 0.2f, 0.0f);
    add(name + "mlp.down_proj.weight", {width, ffn}, 0.2f, 0.0f);
  }
  add("model.norm.weight", {width}, 0.1f, 1.0f);
  const std::string text = dump_json(header);
  const uint64_t size = text.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof size) + text + data;
}

// Writes the model's files into `directory`.
inline void write_model(const TemporaryDirectory& directory, const MadeModel& shape) {
  constexpr int64_t kWidth = 48, kHeads = 2, kKvHeads = 1, kFfn = 80;
  Json config = {{"architectures", {"MistralForCausalLM"}},
                 {"model_type", "mistral"},
                 {"hidden_size", kWidth},
                 {"intermediate_size", kFfn},
                 {"num_hidden_layers", shape.layers},
                 {"num_attention_heads", kHeads},
                 {"num_key_value_heads", kKvHeads},
                 {"head_dim", shape.head_dim},
                 {"hidden_act", "silu"},
                 {"max_position_embeddings", 512},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 10000.0},
                 {"tie_word_embeddings", true},
                 {"vocab_size", shape.vocabulary}};
  config["sliding_window"] = shape.window > 0 ? Json(shape.window) : Json();
  if (shape.window > 0) {
    Json kinds = Json::array();
    for (int64_t layer = 0; layer < shape.layers; ++layer)
      kinds.push_back(layer % 2 == 0 || shape.all_slide ? "sliding_attention" : "full_attention");
    config["layer_types"] = kinds;
  }
  directory.write("config.json", dump_json(config));
  directory.write("model.safetensors", made_weights(shape, kWidth, kHeads, kKvHeads, kFfn));
  const auto golden = std::filesystem::path(QIAO_TEST_DATA) / "golden" / "chat";
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
    directory.write(name, read_file(golden / name, size_t{1} << 20));
}

inline std::shared_ptr<LanguageModel> make_model(const MadeModel& shape, int threads = 1) {
  const TemporaryDirectory directory;
  write_model(directory, shape);
  LanguageModelOptions options;
  options.device = "cpu";
  options.threads = threads;
  return LanguageModel::load(directory.path(), options);
}

}  // namespace qiao::testing
