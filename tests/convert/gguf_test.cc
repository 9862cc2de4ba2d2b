// Hugging Face directories written as GGUF files, against what llama.cpp's converter made of them.
#include "convert/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "base/file.h"
#include "convert/gguf_types.h"
#include "formats/gguf_write.h"
#include "models/decoder.h"
#include "models/logits.h"
#include "models/model_folder.h"
#include "models/step_driver.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"
#include "tensor/dequantize.h"
#include "text/tokenizer.h"
#include "text/tokenizer_to_gguf.h"

namespace qiao::convert {
namespace {

namespace fs = std::filesystem;
using qiao::testing::golden_models;
using qiao::testing::ModelFolder;
using qiao::testing::StepDriver;
using qiao::testing::worst_position;

struct ExportCase {
  std::string folder, config, gguf;
};
void PrintTo(const ExportCase& test, std::ostream* out) { *out << test.folder << "/" << test.config; }

std::vector<float> logits_by(const ModelFiles& files) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < 40; ++i) prompt.push_back((i * 37 + 5) % 90);
  const auto backend = make_backend("cpu", {.threads = 1});
  const auto decoder = Decoder::load(files, *backend, {.compute = DecoderOptions::Policy::kF32});
  StepDriver driver(*decoder, static_cast<int64_t>(prompt.size()));
  return driver.feed_in_chunks(prompt, prompt.size());
}

// Numbers of any kind as one.
std::string plain(const GgufValue& value) {
  return std::visit(
      [](const auto& each) -> std::string {
        using Value = std::decay_t<decltype(each)>;
        if constexpr (std::is_same_v<Value, std::string>) return each;
        if constexpr (std::is_arithmetic_v<Value>) return fmt::format("{:.9g}", static_cast<double>(each));
        return "an array";
      },
      value);
}

class GgufExportTest : public ::testing::TestWithParam<ExportCase> {};

TEST_P(GgufExportTest, IsWhatLlamaCppsConverterWrites) {
  const ExportCase& test = GetParam();
  const qiao::testing::TemporaryDirectory folder;
  const ModelFolder base(test.folder, test.config);
  const auto files = base.open();
  const auto theirs = ModelFiles::open(golden_models() / test.folder / test.gguf);
  const bool is_f16 = theirs->find("token_embd.weight")->dtype == DType::kF16;
  write_gguf_model(*files, folder.path() / "model.gguf", {.kind = is_f16 ? "F16" : "F32", .threads = 2});
  const auto ours = ModelFiles::open(folder.path() / "model.gguf");
  EXPECT_EQ(ours->gguf_version(), 3u);
  ASSERT_EQ(ours->tensors().size(), theirs->tensors().size());
  for (const TensorInfo& tensor : theirs->tensors()) {
    const TensorInfo* made = ours->find(tensor.name);
    ASSERT_NE(made, nullptr) << tensor.name;
    ASSERT_EQ(made->shape, tensor.shape) << tensor.name;
    ASSERT_EQ(made->dtype, tensor.dtype) << tensor.name;
    if (tensor.name == "rope_freqs.weight") {  // theirs are computed in float32
      for (int64_t i = 0; i < tensor.elements(); ++i) {
        const auto at = [&](const ModelFiles& model, const TensorInfo& info) {
          float value = 0;
          std::memcpy(&value, model.bytes(info).data() + i * 4, 4);
          return value;
        };
        EXPECT_NEAR(at(*ours, *made) / at(*theirs, tensor), 1, 1e-5);
      }
      continue;
    }
    EXPECT_TRUE(std::ranges::equal(ours->bytes(*made), theirs->bytes(tensor))) << tensor.name;
  }
  const std::string architecture = *theirs->metadata().find_string("general.architecture");
  EXPECT_EQ(*ours->metadata().find_string("general.architecture"), architecture);
  for (const auto& [key, value] : theirs->metadata().entries) {
    if (!key.starts_with(architecture + ".")) continue;
    const GgufValue* made = ours->metadata().find(key);
    ASSERT_NE(made, nullptr) << key;
    EXPECT_EQ(plain(*made), plain(value)) << key;
  }
  const std::vector<float> before = logits_by(*files), after = logits_by(*ours);
  EXPECT_LE(worst_position(before, after, before.size() / 40), is_f16 ? 5e-3 : 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Families, GgufExportTest,
                         ::testing::Values(ExportCase{"llama", "config.json", "model.gguf"},
                                           ExportCase{"llama", "config.linear.json", "model.linear.gguf"},
                                           ExportCase{"llama", "config.llama3.json", "model.llama3.gguf"},
                                           ExportCase{"llama", "config.yarn.json", "model.yarn.gguf"},
                                           ExportCase{"llama-biases", "config.json", "model.gguf"},
                                           ExportCase{"mistral", "config.json", "model.gguf"},
                                           ExportCase{"qwen2", "config.json", "model.gguf"},
                                           ExportCase{"qwen3", "config.json", "model.gguf"},
                                           ExportCase{"gemma2", "config.json", "model.gguf"},
                                           ExportCase{"gemma3", "config.json", "model.gguf"},
                                           ExportCase{"smollm3", "config.json", "model.gguf"}),
                         [](const auto& param) {
                           std::string name = param.param.folder + "_" + param.param.gguf;
                           for (char& c : name)
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           return name;
                         });

// The size of the difference to `exact`, as a share of it.
double relative_error(std::span<const float> exact, std::span<const float> got) {
  double sum = 0, norm = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double apart = static_cast<double>(got[i]) - static_cast<double>(exact[i]);
    sum += apart * apart;
    norm += static_cast<double>(exact[i]) * static_cast<double>(exact[i]);
  }
  return std::sqrt(sum / norm);
}

std::vector<float> all_matrices(const ModelFiles& files) {
  std::vector<float> all;
  for (const TensorInfo& tensor : files.tensors()) {
    if (tensor.shape.size() < 2) continue;
    const size_t begin = all.size();
    all.resize(begin + static_cast<size_t>(tensor.elements()));
    dequantize(tensor.dtype, files.bytes(tensor).data(), tensor.elements(), all.data() + begin);
  }
  return all;
}

// By how much a model's logits are off where each number of its matrices is off by a share of its own, drawn
// at random: over that share. Independent errors grow along a decoder's products, each model's in its own
// measure.
double sensitivity(const ModelFiles& files, uint64_t seed) {
  constexpr double kShare = 1e-3;
  const qiao::testing::TemporaryDirectory folder;
  fs::copy(files.path() / "config.json", folder.path() / "config.json");
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(1.0, kShare);
  std::vector<TensorToWrite> tensors;
  std::vector<float> values;
  for (const TensorInfo& tensor : files.tensors()) {
    tensors.push_back({tensor.name, DType::kF32, tensor.shape, [&] {
                         values.resize(static_cast<size_t>(tensor.elements()));
                         dequantize(tensor.dtype, files.bytes(tensor).data(), tensor.elements(),
                                    values.data());
                         for (float& value : values)
                           if (tensor.shape.size() > 1) value *= static_cast<float>(normal(random));
                         return std::as_bytes(std::span(values));
                       }});
  }
  write_safetensors(folder.path() / "model.safetensors", tensors);
  return relative_error(logits_by(files), logits_by(*ModelFiles::open(folder.path()))) / kShare;
}

// Errors of weights by their formats: rounded to 11 or 8 bits a number is off by 2^-12 or 2^-9 at most; a
// step of Q8_0 is 1/127 of a block's largest, which is some 2.5 times what is usual in it, and a uniform
// error's size is a step over sqrt(12): 0.6%; of 4 bits 16 times as much, somewhat less where a block has a
// minimum too. Those of logits follow from the model's sensitivity, of which one draw is within a factor
// of 2.
TEST(GgufExportTest, QuantizedLogitsStayWithinTheFormatsError) {
  const qiao::testing::TemporaryDirectory folder;
  const auto files = ModelFiles::open(fs::path(QIAO_TEST_DATA) / "golden" / "chat");
  const auto written = [&](const char* kind) {
    const fs::path path = folder.path() / (std::string(kind) + ".gguf");
    write_gguf_model(*files, path, {.kind = kind, .threads = 2});
    return ModelFiles::open(path);
  };
  const auto exact = written("F32");
  const std::vector<float> weights = all_matrices(*exact), logits = logits_by(*files);
  EXPECT_LE(relative_error(logits, logits_by(*exact)), 1e-6);
  const double grown = (sensitivity(*files, 1) + sensitivity(*files, 2)) / 2;
  const std::pair<const char*, double> bounds[] = {
      {"F16", 0x1p-12}, {"BF16", 0x1p-9}, {"Q8_0", 0.007}, {"Q4_0", 0.11}, {"Q4_K_M", 0.1}};
  for (const auto& [kind, bound] : bounds) {
    const auto made = written(kind);
    const double of_weights = relative_error(weights, all_matrices(*made));
    EXPECT_LE(of_weights, bound) << kind;
    EXPECT_GT(of_weights, bound / 16) << kind;
    EXPECT_LE(relative_error(logits, logits_by(*made)), 2 * grown * of_weights) << kind;
  }
}

// Of 32 layers, as llama-quantize prints them for Llama 3 8B.
TEST(GgufExportTest, MixesTypesAsLlamaQuantizeDoes) {
  const auto kind = std::ranges::find(gguf_kind_table(), "Q4_K_M", &GgufKind::name);
  DecoderConfig config;
  config.num_hidden_layers = 32;
  config.num_attention_heads = 32;
  config.num_key_value_heads = 8;
  const auto of = [&](const char* name, int64_t layer, int64_t columns) {
    return gguf_tensor_dtype(*kind, config, name, layer, {64, columns});
  };
  std::vector<int64_t> more;
  for (int64_t layer = 0; layer < 32; ++layer) {
    const DType down = of("blk.0.ffn_down.weight", layer, 14336);
    EXPECT_EQ(of("blk.0.attn_v.weight", layer, 4096), down);
    if (down == DType::kQ6_K) more.push_back(layer);
    EXPECT_EQ(of("blk.0.attn_q.weight", layer, 4096), DType::kQ4_K);
  }
  EXPECT_THAT(more, ::testing::ElementsAre(0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31));
  EXPECT_EQ(of("output.weight", -1, 4096), DType::kQ6_K);
  EXPECT_EQ(of("token_embd.weight", -1, 4096), DType::kQ4_K);
  config.tie_word_embeddings = true;
  EXPECT_EQ(of("token_embd.weight", -1, 4096), DType::kQ6_K);
  EXPECT_EQ(of("token_embd.weight", -1, 576), DType::kQ8_0);
  EXPECT_EQ(of("blk.1.attn_q.weight", 1, 576), DType::kQ5_0);
  EXPECT_EQ(of("blk.0.ffn_down.weight", 0, 1504), DType::kQ8_0);
  EXPECT_EQ(of("blk.0.ffn_down.weight", 0, 100), DType::kF16);
  EXPECT_EQ(gguf_tensor_dtype(*kind, config, "output_norm.weight", -1, {4096}), DType::kF32);
}

TEST(GgufExportTest, RefusesWhatItCannotSay) {
  const qiao::testing::TemporaryDirectory folder;
  const fs::path out = folder.path() / "model.gguf";
  const ModelFolder dynamic("llama", "config.dynamic.json");
  EXPECT_QIAO_ERROR(write_gguf_model(*dynamic.open(), out, {}), kUnsupported, "rope_type", "dynamic", "yarn");
  const ModelFolder moe("qwen3-moe");
  EXPECT_QIAO_ERROR(write_gguf_model(*moe.open(), out, {}), kUnsupported, "qwen3_moe", "llama, mistral");
  const auto gguf = ModelFiles::open(golden_models() / "llama" / "model.gguf");
  EXPECT_QIAO_ERROR(write_gguf_model(*gguf, out, {}), kUnsupported, "a Hugging Face directory was expected");
  const ModelFolder llama("llama");
  EXPECT_QIAO_ERROR(write_gguf_model(*llama.open(), out, {.kind = "Q9"}), kInvalidInput, "Q9", "Q4_K_M");
  EXPECT_FALSE(fs::exists(out));
}

TEST(GgufTokenizerTest, KeepsItsIds) {
  const std::vector<std::string> texts = {
      "Hello world",
      " Hello  world\n\n\nnew  lines\t\tand tabs ",
      "don't we'll I'M 12345 3.14 x² ½ 100,000",
      "naïve café 你好，世界 こんにちは 안녕 😀👩‍👩‍👧 ",
      "<s>special</s> <|endoftext|><unk>",
      "",
      " ",
      "\n",
      "for (int i = 0; i < 10; ++i) { x[i] += 1; }\r\n"};
  const qiao::testing::TemporaryDirectory folder;
  for (const char* name : {"gpt2", "llama3", "qwen2", "starcoder", "llama2"}) {
    SCOPED_TRACE(name);
    const auto files =
        ModelFiles::open(fs::path(QIAO_TEST_DATA) / "golden" / "tokenizers" / (std::string(name) + ".json"),
                         {.need_weights = false});
    const auto theirs = Tokenizer::from_model(*files);
    write_gguf(folder.path() / "tokenizer.gguf", gguf_tokenizer_of(*files, theirs->vocabulary_size()), {});
    const auto ours = Tokenizer::from_model(*ModelFiles::open(folder.path() / "tokenizer.gguf"));
    EXPECT_EQ(ours->vocabulary_size(), theirs->vocabulary_size());
    for (const std::string& text : texts) {
      for (const bool special : {false, true}) {
        EXPECT_EQ(ours->encode(text, {.add_special = special}),
                  theirs->encode(text, {.add_special = special}))
            << text;
      }
    }
  }
}

}  // namespace
}  // namespace qiao::convert
