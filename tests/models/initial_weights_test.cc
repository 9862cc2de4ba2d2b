// Models that begin from nothing: which tensors they have, and what is drawn for them.
#include "models/initial_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/file.h"
#include "models/decoder.h"
#include "models/model_folder.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"
#include "tensor/floats.h"

namespace qiao {
namespace {

namespace fs = std::filesystem;

using testing::golden_models;

std::map<std::string, std::vector<int64_t>> shapes_of(const ModelFiles& files) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const TensorInfo& tensor : files.tensors()) shapes[tensor.name] = tensor.shape;
  return shapes;
}

std::vector<float> values_of(const ModelFiles& files, const std::string& name) {
  const TensorInfo& tensor = *files.find(name);
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  to_floats(tensor.dtype, files.bytes(tensor).data(), values);
  return values;
}

class InitialWeightsTest : public ::testing::TestWithParam<const char*> {};

TEST_P(InitialWeightsTest, HasTheTensorsThatTransformersWrites) {
  const fs::path model = golden_models() / GetParam();
  const testing::TemporaryDirectory folder;
  folder.write("config.json", read_file(model / "config.json"));
  const auto made = open_or_initialize(folder.path(), 1);
  const auto expected = ModelFiles::open(model);
  EXPECT_EQ(shapes_of(*made), shapes_of(*expected));
  const std::unique_ptr<Backend> backend = make_backend("reference");
  EXPECT_NE(Decoder::load(*made, *backend), nullptr);
}

INSTANTIATE_TEST_SUITE_P(Families, InitialWeightsTest,
                         ::testing::Values("llama", "llama-biases", "mistral", "smollm3", "qwen2", "qwen3",
                                           "gemma2", "gemma3", "phi3", "hunyuan-dense", "hunyuan-moe"));

// Published Qwen3 MoE checkpoints have a tensor for each expert, where Transformers now writes them stacked.
TEST(InitialWeights, WritesExpertsOneByOne) {
  const testing::TemporaryDirectory folder;
  folder.write("config.json", read_file(golden_models() / "qwen3-moe" / "config.json"));
  const auto made = open_or_initialize(folder.path(), 1);
  auto expected = shapes_of(*ModelFiles::open(golden_models() / "qwen3-moe"));
  const auto shapes = shapes_of(*made);
  for (const auto& [name, shape] : std::map(expected)) {
    if (!name.ends_with("experts.gate_up_proj") && !name.ends_with("experts.down_proj")) continue;
    const std::string stem = name.substr(0, name.rfind('.') + 1);
    for (int64_t expert = 0; expert < shape[0]; ++expert) {
      const auto add = [&](const char* part, int64_t rows) {
        expected[fmt::format("{}{}.{}.weight", stem, expert, part)] = {rows, shape[2]};
      };
      if (name.ends_with("down_proj")) {
        add("down_proj", shape[1]);
      } else {
        add("gate_proj", shape[1] / 2);
        add("up_proj", shape[1] / 2);
      }
    }
    expected.erase(name);
  }
  EXPECT_EQ(shapes, expected);
  const std::unique_ptr<Backend> backend = make_backend("reference");
  EXPECT_NE(Decoder::load(*made, *backend), nullptr);
}

constexpr const char* kConfig =
    R"({"model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "attention_bias": true, "initializer_range": 0.1, "pad_token_id": 3)";

TEST(InitialWeights, AreDrawnAsTransformersDrawsThem) {
  const testing::TemporaryDirectory folder;
  folder.write("config.json", std::string(kConfig) + "}");
  const auto files = open_or_initialize(folder.path(), 5);
  const std::vector<float> embedding = values_of(*files, "model.embed_tokens.weight");
  double sum = 0, squares = 0, fourth = 0;
  for (const float value : embedding) {
    sum += value;
    squares += double{value} * value;
    fourth += std::pow(value, 4);
  }
  // 999 rows of 64: six deviations of the mean and of the second and fourth moments of a normal distribution.
  const double n = 999 * 64;
  EXPECT_LT(std::abs(sum / n), 6 * 0.1 / std::sqrt(n));
  EXPECT_LT(std::abs(squares / n / 0.01 - 1), 6 * std::sqrt(2 / n));
  EXPECT_LT(std::abs(fourth / n / 1e-4 - 3), 6 * std::sqrt(96 / n));
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(embedding[3 * 64 + i], 0.0f);  // the padding row
  for (const float value : values_of(*files, "model.layers.0.self_attn.q_proj.bias")) EXPECT_EQ(value, 0.0f);
  for (const float value : values_of(*files, "model.norm.weight")) EXPECT_EQ(value, 1.0f);
}

TEST(InitialWeights, FollowTheSeedAndTheTensorsName) {
  const testing::TemporaryDirectory folder;
  folder.write("config.json", std::string(kConfig) + "}");
  const auto of = [&](uint64_t seed, const char* part) {
    return values_of(*open_or_initialize(folder.path(), seed),
                     fmt::format("model.layers.0.mlp.{}.weight", part));
  };
  EXPECT_EQ(of(5, "gate_proj"), of(5, "gate_proj"));
  EXPECT_NE(of(5, "gate_proj"), of(6, "gate_proj"));
  EXPECT_NE(of(5, "gate_proj"), of(5, "up_proj"));
}

TEST(InitialWeights, HaveTheConfigurationsDtypeAndGemmasNormsAreZero) {
  const testing::TemporaryDirectory folder;
  Json config = parse_json(read_file(golden_models() / "gemma3" / "config.json"), "config.json");
  config.erase("torch_dtype");
  config["dtype"] = "bfloat16";
  folder.write("config.json", dump_json(config));
  const auto files = open_or_initialize(folder.path(), 5);
  for (const TensorInfo& tensor : files->tensors()) EXPECT_EQ(tensor.dtype, DType::kBF16) << tensor.name;
  for (const float value : values_of(*files, "model.norm.weight")) EXPECT_EQ(value, 0.0f);
  config["dtype"] = "int8";
  folder.write("config.json", dump_json(config));
  EXPECT_QIAO_ERROR(open_or_initialize(folder.path(), 5), kInvalidInput, "config.json", "dtype", "int8",
                    "bfloat16");
}

TEST(InitialWeights, AreNotDrawnWhereThereAreWeightsOrNoneCanBeListed) {
  EXPECT_EQ(values_of(*open_or_initialize(golden_models() / "llama", 5), "model.norm.weight"),
            values_of(*ModelFiles::open(golden_models() / "llama"), "model.norm.weight"));
  const testing::TemporaryDirectory folder;
  folder.write("config.json", std::string(kConfig) + "}");
  folder.write("pytorch_model.bin", "?");
  EXPECT_QIAO_ERROR(open_or_initialize(folder.path(), 5), kUnsupported, "pickles");
  const testing::TemporaryDirectory vision;
  vision.write("config.json", read_file(golden_models() / "gemma3-multimodal" / "config.json"));
  EXPECT_QIAO_ERROR(open_or_initialize(vision.path(), 5), kUnsupported, "vision tower");
  const testing::TemporaryDirectory hostile;
  hostile.write("config.json", R"({"model_type": "hunyuan_v1_moe", "vocab_size": 10, "hidden_size": 8,
      "intermediate_size": 8, "num_hidden_layers": 4096, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
      "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "num_experts": 16384, "moe_topk": 1})");
  EXPECT_QIAO_ERROR(open_or_initialize(hostile.path(), 5), kTooLarge, "more than 1048576 tensors");
}

}  // namespace
}  // namespace qiao
