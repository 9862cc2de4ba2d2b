#include "formats/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>

#include "formats/gguf_builder.h"
#include "formats/golden.h"
#include "formats/safetensors_builder.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"

namespace qiao {
namespace {

using testing::GgufBuilder;
using testing::golden;
using testing::one_tensor;
using testing::safetensors_file;

const std::string kWeights = safetensors_file(one_tensor("F32", "[2]", "[0,8]"), 8);

std::string small_gguf() {
  return GgufBuilder().text("general.architecture", "llama").tensor("w", {8}).data(32).build();
}

TEST(ModelFilesTest, OpensADirectoryThatTransformersWrote) {
  const auto model = ModelFiles::open(golden("sharded"));
  EXPECT_EQ(model->kind(), ModelFiles::Kind::kHuggingFace);
  EXPECT_EQ(model->config()["model_type"], "llama");
  EXPECT_EQ(model->generation_config()["eos_token_id"], 1);
  EXPECT_EQ(model->tokenizer_config()["bos_token"], "<s>");
  EXPECT_EQ(model->tokenizer_json()["model"]["type"], "BPE");
  EXPECT_EQ(model->chat_template(), "default {{ messages }}");
  EXPECT_EQ(model->chat_template("default"), "default {{ messages }}");
  EXPECT_EQ(model->chat_template("tool_use"), "tools {{ tools }}");
  EXPECT_EQ(model->chat_template("rag"), "");
  EXPECT_EQ(model->chat_template("../chat_template"), "");
  EXPECT_EQ(model->weight_bytes(), 8800u);  // as its index says
  for (const Json& expected : testing::golden_expected("sharded")) {
    const TensorInfo* tensor = model->find(expected["name"].get<std::string>());
    ASSERT_NE(tensor, nullptr);
    model->will_need(*tensor);
    EXPECT_EQ(testing::fnv1a(model->bytes(*tensor)), expected["fnv1a"]);
    model->release(*tensor);
    EXPECT_EQ(testing::fnv1a(model->bytes(*tensor)), expected["fnv1a"]);  // readable after, too
  }
  EXPECT_EQ(model->find("model.norm"), nullptr);
}

TEST(ModelFilesTest, OpensAGgufFileAndASplitSet) {
  const auto model = ModelFiles::open(golden("all_types.gguf"));
  EXPECT_EQ(model->kind(), ModelFiles::Kind::kGguf);
  EXPECT_EQ(model->gguf_version(), 3u);
  EXPECT_EQ(model->metadata().find_int("value.u8"), 200);
  for (const Json& expected : testing::golden_expected("all_types.gguf")) {
    const TensorInfo* tensor = model->find(expected["name"].get<std::string>());
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(testing::fnv1a(model->bytes(*tensor)), expected["fnv1a"]);
  }
  const auto split = ModelFiles::open(golden("split-00002-of-00003.gguf"));
  const Json last = testing::golden_expected("split-00003-of-00003.gguf")[0];
  EXPECT_EQ(testing::fnv1a(split->bytes(*split->find(last["name"].get<std::string>()))), last["fnv1a"]);
}

class ModelDirectory : public ::testing::Test {
 protected:
  auto open(const ModelOpenOptions& options = {}) { return ModelFiles::open(directory.path(), options); }
  void write(const std::string& name, std::string_view bytes) { directory.write(name, bytes); }
  void write_index(std::string_view map) {
    write("config.json", "{}");
    write("model.safetensors.index.json", fmt::format("{{\"weight_map\":{}}}", map));
  }
  testing::TemporaryDirectory directory;
};

TEST_F(ModelDirectory, WithOneGgufModelOpensIt) {
  write("README.md", "x");
  write("model.gguf", small_gguf());
  write("mmproj-model.gguf", small_gguf());
  EXPECT_EQ(open()->kind(), ModelFiles::Kind::kGguf);
  write("config.json", "{}");  // repositories of GGUF files often carry it
  EXPECT_EQ(open()->kind(), ModelFiles::Kind::kGguf);
}

TEST_F(ModelDirectory, WithOneSplitSetOpensIt) {
  for (const char* name :
       {"split-00001-of-00003.gguf", "split-00002-of-00003.gguf", "split-00003-of-00003.gguf"}) {
    write(name, read_file(golden(name)));
  }
  EXPECT_EQ(open()->tensors().size(), 5u);
}

TEST_F(ModelDirectory, WithSeveralGgufModelsNamesThem) {
  write("a-q4.gguf", small_gguf());
  write("b-q8.gguf", small_gguf());
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "2 GGUF models", "a-q4.gguf, b-q8.gguf");
}

TEST_F(ModelDirectory, WithOneSafetensorsFileOfAnotherNameOpensIt) {
  write("config.json", "{}");
  write("consolidated.safetensors", kWeights);
  EXPECT_NE(open()->find("w"), nullptr);
  write("other.safetensors", kWeights);
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "2 .safetensors files",
                    "consolidated.safetensors, other.safetensors");
  write("model.safetensors", kWeights);
  EXPECT_NE(open()->find("w"), nullptr);
}

TEST_F(ModelDirectory, WithNothingSaysWhatWasLookedFor) {
  EXPECT_QIAO_ERROR(open(), kNotFound, directory.path().string(), ".gguf", "config.json",
                    "model.safetensors");
}

TEST_F(ModelDirectory, OfPicklesSaysHowToConvert) {
  write("config.json", "{}");
  write("pytorch_model.bin", "x");
  EXPECT_QIAO_ERROR(open(), kUnsupported, "safetensors are needed", "save_pretrained");
}

TEST_F(ModelDirectory, OfWeightsWithoutConfigSaysSo) {
  write("model.safetensors", kWeights);
  EXPECT_QIAO_ERROR(open(), kNotFound, "no config.json");
}

TEST_F(ModelDirectory, OfATokenizerAloneOpensWhereWeightsAreNotNeeded) {
  write("tokenizer.json", "{\"model\":{}}");
  EXPECT_QIAO_ERROR(open(), kNotFound, "no model in this directory");
  const auto model = open({.need_weights = false});
  EXPECT_TRUE(model->tokenizer_json().contains("model"));
  EXPECT_TRUE(model->config().is_null());
  EXPECT_TRUE(model->tokenizer_config().is_null());
  EXPECT_EQ(model->chat_template(), "");
}

TEST_F(ModelDirectory, ATokenizerFileOpensByItselfWhereWeightsAreNotNeeded) {
  const auto path = directory.write("some.json", R"({"model":{}})");
  const auto model = ModelFiles::open(path, {.need_weights = false, .need_usable = false});
  EXPECT_TRUE(model->tokenizer_json().contains("model"));
  EXPECT_TRUE(model->tensors().empty());
  EXPECT_EQ(model->chat_template(), "");
  EXPECT_QIAO_ERROR(ModelFiles::open(path), kInvalidInput, "some.json", "not a GGUF file");
  const auto other = directory.write("config.json", "{}");
  EXPECT_QIAO_ERROR(ModelFiles::open(other, {.need_weights = false}), kInvalidInput, "config.json",
                    "\"model\"");
}

TEST_F(ModelDirectory, AnAbsentPathIsNotFound) {
  EXPECT_QIAO_ERROR(ModelFiles::open(directory.path() / "none.gguf"), kNotFound, "none.gguf");
}

TEST_F(ModelDirectory, ALoneSafetensorsFileOpensForInspectionOnly) {
  const auto path = directory.write("model.safetensors", kWeights);
  EXPECT_QIAO_ERROR(ModelFiles::open(path), kInvalidInput, "the directory", "config.json");
  EXPECT_EQ(ModelFiles::open(path, {.need_usable = false})->tensors().size(), 1u);
}

TEST_F(ModelDirectory, HostileConfigurationFilesAreNamed) {
  write("model.safetensors", kWeights);
  write("config.json", "{\"a\":");
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "config.json: byte 6", "not valid JSON");
  write("config.json", "[]");
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "config.json", "object");
  write("config.json", std::string(1000, '['));
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "config.json", "nested deeper");
  write("config.json", std::string((16 << 20) + 1, ' '));
  EXPECT_QIAO_ERROR(open(), kTooLarge, "config.json");
  write("config.json", "");
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "config.json");
  write("config.json", "{}");
  write("generation_config.json", "null");
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "generation_config.json");
  write("generation_config.json", "{}");
  write("tokenizer_config.json", "3");
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "tokenizer_config.json");
  write("tokenizer_config.json", "{}");
  write("special_tokens_map.json", "\"\"");
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "special_tokens_map.json");
  write("special_tokens_map.json", "{}");
  write("tokenizer.json", "{\"a\":\"\xff\"}");
  const auto model = open();  // the tokenizer is read on first use
  EXPECT_QIAO_ERROR(model->tokenizer_json(), kInvalidInput, "tokenizer.json");
}

TEST_F(ModelDirectory, PipesInPlaceOfFilesAreRefusedAtOnce) {
  write("model.safetensors", kWeights);
  ASSERT_EQ(::mkfifo((directory.path() / "config.json").c_str(), 0600), 0);
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "config.json", "not a regular file");
  std::filesystem::remove(directory.path() / "config.json");
  write("config.json", "{}");
  ASSERT_EQ(::mkfifo((directory.path() / "chat_template.jinja").c_str(), 0600), 0);
  ASSERT_EQ(::mkfifo((directory.path() / "tokenizer.json").c_str(), 0600), 0);
  const auto model = open();
  EXPECT_QIAO_ERROR(model->chat_template(), kInvalidInput, "chat_template.jinja", "not a regular file");
  EXPECT_QIAO_ERROR(model->tokenizer_json(), kInvalidInput, "tokenizer.json", "not a regular file");
}

TEST_F(ModelDirectory, SpecialTokensFillWhatTheTokenizersConfigLacks) {
  write("config.json", "{}");
  write("model.safetensors", kWeights);
  write("tokenizer_config.json", R"({"bos_token":"<a>"})");
  write("special_tokens_map.json", R"({"bos_token":"<b>","eos_token":{"content":"<c>"}})");
  const auto model = open();
  EXPECT_EQ(model->tokenizer_config()["bos_token"], "<a>");
  EXPECT_EQ(model->tokenizer_config()["eos_token"]["content"], "<c>");
}

TEST_F(ModelDirectory, ChatTemplatesComeFromTheirFilesInOrder) {
  write("config.json", "{}");
  write("model.safetensors", kWeights);
  write("tokenizer_config.json", R"({"chat_template":"one"})");
  EXPECT_EQ(open()->chat_template(), "one");
  EXPECT_EQ(open()->chat_template("tool_use"), "");
  write("tokenizer_config.json",
        R"({"chat_template":[{"name":"default","template":"two"},{"name":"rag","template":"three"}]})");
  EXPECT_EQ(open()->chat_template(), "two");
  EXPECT_EQ(open()->chat_template("rag"), "three");
  write("chat_template.json", R"({"chat_template":"four"})");
  EXPECT_EQ(open()->chat_template(), "four");
  EXPECT_EQ(open()->chat_template("rag"), "three");
  write("chat_template.jinja", "five\n");
  EXPECT_EQ(open()->chat_template(), "five\n");
}

TEST_F(ModelDirectory, AMalformedChatTemplateIsRefused) {
  write("config.json", "{}");
  write("model.safetensors", kWeights);
  for (const char* bad : {R"({"chat_template":1})", R"({"chat_template":["x"]})",
                          R"({"chat_template":[{"name":"default"}]})", R"({"chat_template":{"a":"b"}})"}) {
    write("tokenizer_config.json", bad);
    EXPECT_QIAO_ERROR(open()->chat_template(), kInvalidInput, "tokenizer_config.json: chat_template");
  }
}

TEST_F(ModelDirectory, ChatTemplatesOfGgufAreNamedByKey) {
  const auto path = directory.write("m.gguf", GgufBuilder()
                                                  .text("tokenizer.chat_template", "one")
                                                  .text("tokenizer.chat_template.tool_use", "two")
                                                  .build());
  const auto model = ModelFiles::open(path);
  EXPECT_EQ(model->chat_template(), "one");
  EXPECT_EQ(model->chat_template("tool_use"), "two");
  EXPECT_EQ(model->chat_template("rag"), "");
}

TEST_F(ModelDirectory, HostileShardNamesAreRefused) {
  for (const char* name : {"../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..", "",
                           "a\\\\b.safetensors", "b.safetensors\\u0000x", "model.bin"}) {
    write_index(fmt::format("{{\"w\":\"{}\"}}", name));
    EXPECT_QIAO_ERROR(open(), kInvalidInput, "model.safetensors.index.json: weight_map", "plain name");
  }
}

TEST_F(ModelDirectory, MalformedIndexesAreRefused) {
  for (const char* map : {"1", "[]", "null", "{}", "\"x\""}) {
    write_index(map);
    EXPECT_QIAO_ERROR(open(), kInvalidInput, "model.safetensors.index.json: weight_map", "an object");
  }
  write_index("{\"w\":3}");
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "weight_map: \"w\"");
  write("model.safetensors.index.json", "[]");
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "model.safetensors.index.json");
}

TEST_F(ModelDirectory, AMissingShardIsNamed) {
  write_index(R"({"w":"a.safetensors","x":"b.safetensors"})");
  write("a.safetensors", kWeights);
  EXPECT_QIAO_ERROR(open(), kNotFound, "b.safetensors", "2 shards");
}

TEST_F(ModelDirectory, ATensorThatItsShardLacksIsNamed) {
  write_index(R"({"w":"a.safetensors","x":"a.safetensors"})");
  write("a.safetensors", kWeights);
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "a.safetensors", "no tensor \"x\"");
}

TEST_F(ModelDirectory, ADamagedShardIsNamed) {
  write_index(R"({"w":"a.safetensors"})");
  write("a.safetensors", kWeights.substr(0, kWeights.size() - 3));
  EXPECT_QIAO_ERROR(open(), kInvalidInput, "a.safetensors", "3 are missing");
}

TEST_F(ModelDirectory, TensorsThatTheIndexDoesNotNameAreLeftOut) {
  write_index(R"({"w":"a.safetensors"})");
  write("a.safetensors", kWeights);
  write("b.safetensors", kWeights);
  EXPECT_EQ(open()->tensors().size(), 1u);
}

// The format lets a header end anywhere; kernels want their elements aligned.
TEST_F(ModelDirectory, TensorsAtOddAddressesAreAlignedOnReading) {
  write("config.json", "{}");
  for (size_t padding = 0; padding < 4; ++padding) {
    std::string json = one_tensor("F32", "[2]", "[0,8]");
    json.resize(json.size() + padding, ' ');
    const std::string file = safetensors_file(json, 8);
    write("model.safetensors", file);
    const auto model = open();
    const auto bytes = model->bytes(*model->find("w"));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % 4, 0u);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()),
              file.substr(file.size() - 8));
    model->release(*model->find("w"));
    EXPECT_EQ(model->bytes(*model->find("w")).size(), 8u);
  }
}

}  // namespace
}  // namespace qiao
