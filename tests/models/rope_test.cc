// Rotary tables of published models' configurations against Transformers' (tests/golden/make_models.py).
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "formats/gguf_builder.h"
#include "models/config.h"
#include "models/model_folder.h"
#include "models/rope_frequencies.h"
#include "support/expect_error.h"

namespace qiao {
namespace {

DecoderConfig read_config(const Json& json, int64_t context) {
  const testing::TemporaryFolder folder;
  testing::write_text(folder.path() / "config.json", dump_json(json));
  return read_decoder_config(*ModelFiles::open(folder.path(), {.need_weights = false}), context);
}

void expect_close(const std::vector<float>& got, const Json& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double value = expected[i].get<double>();
    EXPECT_LE(std::abs(got[i] - value), 4e-7 * value) << "frequency " << i;
  }
}

TEST(RopeTest, TablesOfPublishedModelsAreTransformers) {
  const Json cases = parse_json(read_file(testing::golden_models() / "rope_tables.json"), "rope_tables.json");
  ASSERT_GE(cases.size(), 8u);
  for (const Json& test : cases) {
    const std::string what = dump_json(test.at("config").at("model_type"));
    SCOPED_TRACE(what + " at " + dump_json(test.at("context")));
    const DecoderConfig config = read_config(test.at("config"), test.at("context").get<int64_t>());
    expect_close(config.rope.inverse_frequencies, test.at("frequencies"));
    EXPECT_NEAR(config.rope.scale, test.at("scale").get<double>(), 1e-6);
    if (test.contains("local_frequencies"))
      expect_close(config.rope_local.inverse_frequencies, test.at("local_frequencies"));
    else
      EXPECT_TRUE(config.rope_local.inverse_frequencies.empty());
  }
}

TEST(RopeTest, OnlyPhi3ReadsThePartialRotaryFactor) {
  Json config = {
      {"model_type", "llama"},
      {"vocab_size", 96},
      {"hidden_size", 32},
      {"intermediate_size", 40},
      {"num_hidden_layers", 1},
      {"num_attention_heads", 2},
      {"max_position_embeddings", 64},
      {"rms_norm_eps", 1e-5},
      {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e4}, {"partial_rotary_factor", 0.5}}}};
  EXPECT_EQ(read_config(config, 0).rope.inverse_frequencies.size(),
            8u);  // as Transformers: the factor is ignored
  config["model_type"] = "phi3";
  EXPECT_EQ(read_config(config, 0).rope.inverse_frequencies.size(), 4u);
}

TEST(RopeTest, DividesByGgufDivisors) {
  RopeScaling scaling{.kind = RopeScaling::Kind::kDivisors, .theta = 100.0};
  scaling.divisors = {2.0f, 5.0f};
  const RopeTable table = make_rope_table(scaling, 4, 10, 10);
  EXPECT_FLOAT_EQ(table.inverse_frequencies[0], 0.5f);   // 100^0 / 2
  EXPECT_FLOAT_EQ(table.inverse_frequencies[1], 0.02f);  // 100^(-2/4) / 5
  EXPECT_EQ(table.scale, 1.0f);
}

// Gemma 3's published text_config leaves most values to Transformers' defaults.
TEST(ConfigTest, FillsGemma3DefaultsOfMultimodalDirectories) {
  const Json text = {
      {"hidden_size", 2560},         {"intermediate_size", 10240},
      {"model_type", "gemma3_text"}, {"num_hidden_layers", 34},
      {"sliding_window", 1024},      {"rope_scaling", {{"factor", 8.0}, {"rope_type", "linear"}}}};
  const DecoderConfig config = read_config({{"architectures", {"Gemma3ForConditionalGeneration"}},
                                            {"model_type", "gemma3"},
                                            {"text_config", text}},
                                           0);
  EXPECT_EQ(config.num_attention_heads, 8);
  EXPECT_EQ(config.num_key_value_heads, 4);
  EXPECT_EQ(config.head_dim, 256);
  EXPECT_EQ(config.vocabulary_size, 262208);
  EXPECT_EQ(config.max_position_embeddings, 131072);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_FLOAT_EQ(config.attention_scale, 1.0f / 16.0f);
  EXPECT_FLOAT_EQ(config.embedding_scale, 50.596443f);  // sqrt(2560)
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.hidden_act, Activation::kGeluTanh);
  EXPECT_TRUE(config.layer_slides[0]);
  EXPECT_FALSE(config.layer_slides[5]);  // every sixth is global
  EXPECT_FALSE(config.layer_slides[11]);
}

// A GGUF file of Gemma 3 with five layers and no tensors, and the window's pattern that `add` writes.
std::vector<bool> gguf_pattern(const std::function<void(testing::GgufBuilder&)>& add) {
  testing::GgufBuilder builder;
  builder.text("general.architecture", "gemma3");
  const std::pair<const char*, uint32_t> numbers[] = {{"vocab_size", 96},
                                                      {"block_count", 5},
                                                      {"embedding_length", 32},
                                                      {"context_length", 128},
                                                      {"feed_forward_length", 40},
                                                      {"attention.head_count", 4},
                                                      {"attention.key_length", 8},
                                                      {"attention.value_length", 8},
                                                      {"attention.sliding_window", 16}};
  for (const auto& [key, value] : numbers)
    builder.number(std::string("gemma3.") + key, testing::kGgufU32, value);
  builder.number("gemma3.attention.layer_norm_rms_epsilon", testing::kGgufF32, 1e-6f);
  add(builder);
  const testing::TemporaryFolder folder;
  testing::write_text(folder.path() / "model.gguf", builder.build());
  return read_decoder_config(*ModelFiles::open(folder.path() / "model.gguf"), 0).layer_slides;
}

constexpr const char* kPattern = "gemma3.attention.sliding_window_pattern";

TEST(ConfigTest, ReadsTheWindowPatternOfGguf) {
  using Flags = std::vector<bool>;
  EXPECT_EQ(gguf_pattern([](auto&) {}),
            (Flags{true, true, true, true, true}));  // every sixth would be global
  EXPECT_EQ(gguf_pattern([](auto& file) { file.number(kPattern, testing::kGgufU32, 3u); }),
            (Flags{true, true, false, true, true}));
  EXPECT_EQ(gguf_pattern([](auto& file) { file.number(kPattern, testing::kGgufU32, 0u); }), Flags(5, true));
  EXPECT_EQ(gguf_pattern([](auto& file) { file.number(kPattern, testing::kGgufU32, 1u); }), Flags(5, false));
  const std::string_view flags("\0\1\1\0\1", 5);
  EXPECT_EQ(gguf_pattern([&](auto& file) { file.array(kPattern, testing::kGgufBool, 5, flags); }),
            (Flags{false, true, true, false, true}));
  const auto too_few = [&](auto& file) { file.array(kPattern, testing::kGgufBool, 4, flags.substr(0, 4)); };
  EXPECT_QIAO_ERROR(gguf_pattern(too_few), kInvalidInput, kPattern, "a list of 4", "each of the 5 layers");
}

}  // namespace
}  // namespace qiao
