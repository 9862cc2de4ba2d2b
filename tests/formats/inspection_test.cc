#include "formats/inspection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "formats/gguf_builder.h"
#include "formats/golden.h"
#include "support/temporary_directory.h"

namespace qiao {
namespace {

using testing::GgufBuilder;
using testing::golden;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr ModelOpenOptions kInspect{.need_weights = false, .need_usable = false};

// 200 tokens, a name that would write to the terminal, and a tensor of a type that Qiao lacks.
std::shared_ptr<ModelFiles> sample(const testing::TemporaryDirectory& directory) {
  std::string tokens;
  for (int i = 0; i < 200; ++i) GgufBuilder::put_string(tokens, fmt::format("t{}", i));
  const auto path =
      directory.write("m.gguf", GgufBuilder()
                                    .text("general.architecture", "llama")
                                    .text("general.name", "red\x1b[31m\nname")
                                    .number<uint32_t>("llama.context_length", testing::kGgufU32, 4096)
                                    .array("tokenizer.ggml.tokens", testing::kGgufString, 200, tokens)
                                    .tensor("a\x07", {8, 3})
                                    .tensor("b", {256, 2}, 16, 96)
                                    .data(96 + 160)
                                    .build());
  return ModelFiles::open(path, kInspect);
}

TEST(InspectionTest, CountsWhatIsThere) {
  const testing::TemporaryDirectory directory;
  const ModelSummary summary = summarize(*sample(directory));
  EXPECT_EQ(summary.format, "GGUF v3");
  EXPECT_EQ(summary.architecture, "llama");
  EXPECT_EQ(summary.parameters, 24u + 512u);
  EXPECT_EQ(summary.weight_bytes, 96u + 132u);
  EXPECT_EQ(summary.context_length, 4096);
  EXPECT_EQ(summary.vocabulary_size, 200);
  EXPECT_EQ(summary.types.at("F32").bytes, 96u);
  EXPECT_EQ(summary.types.at("IQ2_XXS").parameters, 512u);
}

TEST(InspectionTest, TextAbbreviatesArraysAndHidesControlCharacters) {
  const testing::TemporaryDirectory directory;
  const std::string text = inspect_text(*sample(directory), {});
  EXPECT_THAT(text, HasSubstr("200 × text: [\"t0\", \"t1\", \"t2\", \"t3\", …]"));
  EXPECT_THAT(text, HasSubstr("red\\x1b[31m\\x0aname"));
  EXPECT_THAT(text, HasSubstr("  a\\x07    [3, 8]  F32"));
  EXPECT_THAT(text, HasSubstr("IQ2_XXS        132 B  unsupported type"));
  EXPECT_EQ(text.find_first_of("\x1b\x07"), std::string::npos);
  const std::string short_text = inspect_text(*sample(directory), {.summary = false, .tensors = false});
  EXPECT_EQ(short_text.rfind("Metadata (4)\n", 0), 0u);
  EXPECT_THAT(short_text, Not(HasSubstr("IQ2_XXS")));
  EXPECT_THAT(inspect_text(*sample(directory), {.full = true}), HasSubstr("\"t198\", \"t199\"]"));
}

TEST(InspectionTest, JsonHoldsEverything) {
  const testing::TemporaryDirectory directory;
  const Json json = inspect_json(*sample(directory), {});
  EXPECT_EQ(json["format"], "GGUF v3");
  EXPECT_EQ(json["name"], "red\x1b[31m\nname");
  EXPECT_EQ(json["metadata"]["tokenizer.ggml.tokens"]["count"], 200);
  EXPECT_EQ(json["metadata"]["tokenizer.ggml.tokens"]["first"].size(), 8u);
  EXPECT_EQ(json["metadata"]["llama.context_length"], 4096);
  EXPECT_EQ(json["tensors"][0]["shape"], Json::array({3, 8}));
  EXPECT_EQ(json["tensors"][1]["type"], "IQ2_XXS");
  EXPECT_EQ(json["tensors"][1]["supported"], false);
  EXPECT_EQ(inspect_json(*sample(directory), {.full = true})["metadata"]["tokenizer.ggml.tokens"].size(),
            200u);
}

TEST(InspectionTest, ReadsAHuggingFaceDirectory) {
  const auto model = ModelFiles::open(golden("sharded"), kInspect);
  const ModelSummary summary = summarize(*model);
  EXPECT_EQ(summary.format, "Hugging Face (safetensors)");
  EXPECT_EQ(summary.architecture, "LlamaForCausalLM");
  EXPECT_EQ(summary.parameters, 4400u);  // as its index says
  EXPECT_EQ(summary.context_length, 128);
  EXPECT_EQ(summary.vocabulary_size, 64);
  const std::string text = inspect_text(*model, {});
  EXPECT_THAT(text, HasSubstr("architectures                           [\"LlamaForCausalLM\"]\n"));
  EXPECT_THAT(text, HasSubstr("rope_parameters.rope_type               \"default\"\n"));
  EXPECT_EQ(inspect_json(*model, {})["metadata"]["config"]["hidden_size"], 16);
}

// Metadata of the wrong kind is shown, not stumbled over.
TEST(InspectionTest, OddMetadataDoesNotStopIt) {
  const testing::TemporaryDirectory directory;
  const auto gguf =
      directory.write("m.gguf", GgufBuilder()
                                    .number<uint8_t>("general.architecture", testing::kGgufU8, 1)
                                    .text("tokenizer.ggml.tokens", "none")
                                    .number<float>("general.name", testing::kGgufF32, 0.5f)
                                    .build());
  EXPECT_THAT(inspect_text(*ModelFiles::open(gguf, kInspect), {}), HasSubstr("general.name           0.5\n"));
  const testing::TemporaryDirectory other;
  other.write("config.json",
              R"({"architectures":[3],"vocab_size":"x","text_config":[1],"_name_or_path":{}})");
  EXPECT_THAT(inspect_text(*ModelFiles::open(other.path(), kInspect), {}), HasSubstr("architectures  [3]\n"));
}

}  // namespace
}  // namespace qiao
