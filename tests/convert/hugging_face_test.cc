// Models written as Hugging Face directories compute as what they were made of.
#include "convert/hugging_face.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "base/file.h"
#include "formats/safetensors_write.h"
#include "models/decoder.h"
#include "models/logits.h"
#include "models/model_folder.h"
#include "models/step_driver.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"

namespace qiao::convert {
namespace {

namespace fs = std::filesystem;
using qiao::testing::golden_models;
using qiao::testing::ModelFolder;
using qiao::testing::StepDriver;
using qiao::testing::worst_position;

fs::path golden_adapters() { return fs::path(QIAO_TEST_DATA) / "golden" / "lora"; }

struct MergeCase {
  std::string name, folder, config, gguf, adapter;
  std::vector<int32_t> prompt;
  int64_t context = 0;
};
void PrintTo(const MergeCase& test, std::ostream* out) { *out << test.name; }

// Every adapter, of either format, on every base that it goes with.
std::vector<MergeCase> merge_cases() {
  std::vector<MergeCase> cases;
  for (const Json& entry : parse_json(read_file(golden_adapters() / "cases.json"), "cases.json")) {
    for (const std::string adapter : {"adapter", "gguf_adapter"}) {
      for (const std::string base : {"", "gguf"}) {
        if (!entry.contains(adapter) || (!base.empty() && !entry.contains(base))) continue;
        const std::string folder = entry.at("folder").get<std::string>();
        if (!base.empty() && (folder == "phi3" || folder.starts_with("hunyuan")))
          continue;  // refused: see below
        cases.push_back({fmt::format("{}_{}_on_{}", entry.at("name").get<std::string>(), adapter,
                                     base.empty() ? "directory" : "gguf"),
                         folder, entry.at("config").get<std::string>(),
                         base.empty() ? "" : entry.at(base).get<std::string>(),
                         entry.at(adapter).get<std::string>(), entry.at("prompt").get<std::vector<int32_t>>(),
                         entry.at("context").get<int64_t>()});
        std::ranges::replace(cases.back().name, '-', '_');
      }
    }
  }
  return cases;
}

std::vector<float> logits_of(const ModelFiles& files, const std::vector<int32_t>& prompt, int64_t context,
                             const LoraFiles* lora = nullptr) {
  const auto backend = make_backend("cpu", {.threads = 1});
  const auto decoder =
      Decoder::load(files, *backend, {.compute = DecoderOptions::Policy::kF32, .context = context});
  if (lora != nullptr) decoder->add_adapter(*lora);
  StepDriver driver(*decoder, static_cast<int64_t>(prompt.size()));
  if (lora != nullptr) driver.adapter = 0;
  return driver.feed_in_chunks(prompt, prompt.size());
}

// FP8 becomes floats, which another directory and a GGUF file hold exactly.
TEST(Fp8ExportTest, ComputesAsTheCheckpoint) {
  const fs::path model = fs::path(QIAO_TEST_DATA) / "golden" / "fp8" / "qwen3-moe-block";
  const auto prompt = parse_json(read_file(model / "prompt.json"), "prompt.json").get<std::vector<int32_t>>();
  const auto files = ModelFiles::open(model);
  const std::vector<float> expected = logits_of(*files, prompt, 0);
  const qiao::testing::TemporaryDirectory out;
  write_hugging_face(*files, out.path() / "floats", {.dtype = DType::kF32});
  const auto floats = ModelFiles::open(out.path() / "floats");
  EXPECT_FALSE(floats->config().contains("quantization_config"));
  for (const TensorInfo& tensor : floats->tensors()) EXPECT_EQ(tensor.dtype, DType::kF32) << tensor.name;
  EXPECT_EQ(logits_of(*floats, prompt, 0), expected);
  write_hugging_face(*files, out.path() / "bf16", {});
  EXPECT_EQ(ModelFiles::open(out.path() / "bf16")->find("model.layers.0.self_attn.q_proj.weight")->dtype,
            DType::kBF16);
}

// Of none that is in blocks of 128, too.
TEST(Fp8ExportTest, MicroscalingBecomesADirectoryOfFloats) {
  const fs::path golden = fs::path(QIAO_TEST_DATA) / "golden" / "fp8" / "llama-mx";
  const qiao::testing::TemporaryDirectory folder;
  const fs::path model = folder.path() / "model", out = folder.path() / "out";
  fs::copy(golden, model);
  std::ofstream(model / "hf_quant_config.json") << R"({"quantization":{"quant_algo":"MXFP8"}})";
  const auto prompt = parse_json(read_file(model / "prompt.json"), "prompt.json").get<std::vector<int32_t>>();
  const auto files = ModelFiles::open(model);
  write_hugging_face(*files, out, {});
  const auto floats = ModelFiles::open(out);
  EXPECT_FALSE(floats->config().contains("quantization_config"));
  EXPECT_FALSE(fs::exists(out / "hf_quant_config.json"));
  EXPECT_EQ(logits_of(*floats, prompt, 0), logits_of(*files, prompt, 0));
}

// A copy of what nothing here reads would be no directory of floats.
TEST(ExportTest, OtherQuantizedMatricesAreRefused) {
  const qiao::testing::TemporaryDirectory folder;
  const std::vector<std::byte> packed(32);
  const std::string name = "model.layers.0.mlp.up_proj.qweight";
  fs::create_directories(folder.path() / "gptq");
  fs::copy(fs::path(QIAO_TEST_DATA) / "golden" / "chat" / "config.json",
           folder.path() / "gptq" / "config.json");
  const std::vector<TensorToWrite> tensors = {
      {name, DType::kI32, {2, 4}, [&packed] { return std::span<const std::byte>(packed); }}};
  write_safetensors(folder.path() / "gptq" / "model.safetensors", tensors);
  const auto files = ModelFiles::open(folder.path() / "gptq");
  EXPECT_QIAO_ERROR(write_hugging_face(*files, folder.path() / "out", {}), kUnsupported, name, "I32[2, 4]",
                    "GPTQ or AWQ", "take the model");
  EXPECT_FALSE(fs::exists(folder.path() / "out"));
}

class MergeTest : public ::testing::TestWithParam<MergeCase> {};

TEST_P(MergeTest, ComputesAsTheBaseBesideItsAdapter) {
  const MergeCase& test = GetParam();
  const qiao::testing::TemporaryDirectory folder;
  const ModelFolder base(test.folder, test.config);
  const auto files =
      test.gguf.empty() ? base.open() : ModelFiles::open(golden_models() / test.folder / test.gguf);
  const auto lora = LoraFiles::open(golden_adapters() / test.adapter);
  write_hugging_face(*files, folder.path() / "merged", {.dtype = DType::kF32, .lora = lora.get()});
  const auto merged = ModelFiles::open(folder.path() / "merged");
  const std::vector<float> beside = logits_of(*files, test.prompt, test.context, lora.get()),
                           got = logits_of(*merged, test.prompt, test.context),
                           plain = logits_of(*files, test.prompt, test.context);
  const size_t vocabulary = beside.size() / test.prompt.size();
  EXPECT_LE(worst_position(beside, got, vocabulary), 1e-5);
  EXPECT_GT(worst_position(beside, plain, vocabulary), 1e-2);
}

INSTANTIATE_TEST_SUITE_P(Adapters, MergeTest, ::testing::ValuesIn(merge_cases()),
                         [](const auto& param) { return param.param.name; });

TEST(MergeTest, WhatNoAdapterChangesStaysByteForByte) {
  const qiao::testing::TemporaryDirectory folder;
  const fs::path base = fs::path(QIAO_TEST_DATA) / "golden" / "chat", out = folder.path() / "merged";
  const auto files = ModelFiles::open(base);
  const auto lora = LoraFiles::open(golden_adapters() / "chat-two");
  write_hugging_face(*files, out, {.dtype = {}, .lora = lora.get()});
  const auto merged = ModelFiles::open(out);
  ASSERT_EQ(merged->tensors().size(), files->tensors().size());
  int64_t changed = 0;
  for (const TensorInfo& tensor : files->tensors()) {
    const TensorInfo* other = merged->find(tensor.name);
    ASSERT_NE(other, nullptr);
    EXPECT_EQ(other->dtype, tensor.dtype);
    const auto a = files->bytes(tensor), b = merged->bytes(*other);
    const bool same = std::ranges::equal(a, b);
    const bool is_target = tensor.name.find("q_proj.weight") != std::string::npos ||
                           tensor.name.find("v_proj.weight") != std::string::npos ||
                           tensor.name.find("up_proj.weight") != std::string::npos;
    EXPECT_EQ(same, !is_target) << tensor.name;
    changed += same ? 0 : 1;
  }
  EXPECT_EQ(changed, std::ssize(lora->pairs()));
  for (const char* name :
       {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"})
    EXPECT_EQ(read_file(base / name), read_file(out / name));
}

TEST(MergeTest, RefusesWhatDoesNotFit) {
  const qiao::testing::TemporaryDirectory folder;
  const auto files = ModelFiles::open(fs::path(QIAO_TEST_DATA) / "golden" / "chat");
  const auto other = LoraFiles::open(golden_adapters() / "gemma3");
  EXPECT_QIAO_ERROR(write_hugging_face(*files, folder.path() / "out", {.dtype = {}, .lora = other.get()}),
                    kInvalidInput, "adapter_model.safetensors", "was expected");
  EXPECT_FALSE(fs::exists(folder.path() / "out"));
  EXPECT_QIAO_ERROR(write_hugging_face(*files, files->path()), kInvalidInput, "holds the model itself");
  const auto phi = ModelFiles::open(golden_models() / "hunyuan-moe" / "model.gguf");
  EXPECT_QIAO_ERROR(write_hugging_face(*phi, folder.path() / "out"), kUnsupported, "hunyuan-moe",
                    "llama, qwen2");
}

// A GGUF file of golden/models and the directory that Transformers wrote of the same model.
class GgufToDirectoryTest : public ::testing::TestWithParam<std::string> {};

TEST_P(GgufToDirectoryTest, SaysAndComputesTheSame) {
  const fs::path path = golden_models() / GetParam();
  const qiao::testing::TemporaryDirectory folder;
  const auto files = ModelFiles::open(path);
  write_hugging_face(*files, folder.path() / "out", {.dtype = DType::kF32});
  const auto made = ModelFiles::open(folder.path() / "out");
  const DecoderConfig a = read_decoder_config(*files), b = read_decoder_config(*made);
  EXPECT_EQ(a.hidden_act, b.hidden_act);
  EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
  EXPECT_EQ(a.attention_scale, b.attention_scale);
  EXPECT_EQ(a.sliding_window, b.sliding_window);
  EXPECT_EQ(a.layer_slides, b.layer_slides);
  EXPECT_EQ(a.layer_ropes, b.layer_ropes);
  EXPECT_EQ(a.tie_word_embeddings, b.tie_word_embeddings);
  EXPECT_EQ(a.max_position_embeddings, b.max_position_embeddings);
  // Transformers takes no other number.
  EXPECT_TRUE(made->config().value("query_pre_attn_scalar", Json(1)).is_number_integer());
  std::vector<int32_t> prompt;
  for (int i = 0; i < 40; ++i) prompt.push_back((i * 37 + 5) % 90);
  const std::vector<float> from = logits_of(*files, prompt, 0), got = logits_of(*made, prompt, 0);
  EXPECT_LE(worst_position(from, got, from.size() / prompt.size()), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Families, GgufToDirectoryTest,
                         ::testing::Values("llama/model.gguf", "llama/model.linear.gguf",
                                           "llama/model.yarn.gguf", "llama-biases/model.gguf",
                                           "mistral/model.gguf", "qwen2/model.gguf", "qwen3/model.gguf",
                                           "gemma2/model.gguf", "gemma3/model.gguf", "smollm3/model.gguf"),
                         [](const auto& param) {
                           std::string name = param.param.substr(0, param.param.rfind('.'));
                           for (char& c : name)
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           return name;
                         });

}  // namespace
}  // namespace qiao::convert
