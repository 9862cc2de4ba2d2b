// FP8 checkpoints against PyTorch (tests/golden/make_fp8_models.py), and models of floats quantized as they
// are loaded.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>

#include "backend/backend.h"
#include "formats/safetensors_write.h"
#include "models/decoder.h"
#include "models/logits.h"
#include "models/model_folder.h"
#include "models/step_driver.h"
#include "models/weights.h"
#include "tensor/dequantize.h"
#include "tensor/floats.h"
#include "tensor/half.h"

namespace qiao {
namespace {

using ::testing::HasSubstr;
using testing::read_floats;
using testing::StepDriver;
using testing::worst_position;
using Policy = DecoderOptions::Policy;

constexpr size_t kVocabulary = 96;

testing::fs::path golden_fp8() { return testing::fs::path(QIAO_TEST_DATA) / "golden" / "fp8"; }

std::vector<int32_t> prompt_of(const std::string& model) {
  return parse_json(read_file(golden_fp8() / model / "prompt.json"), "prompt.json")
      .get<std::vector<int32_t>>();
}

std::vector<float> logits(const ModelFiles& files, Backend& backend, const DecoderOptions& options,
                          const std::vector<int32_t>& prompt, size_t chunk) {
  const auto decoder = Decoder::load(files, backend, options);
  return StepDriver(*decoder, static_cast<int64_t>(prompt.size())).feed_in_chunks(prompt, chunk);
}

double root_mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

struct Fp8Case {
  std::string model, chip;
};

class Fp8ModelTest : public ::testing::TestWithParam<Fp8Case> {};

TEST_P(Fp8ModelTest, LogitsArePyTorchs) {
  const auto& [model, chip] = GetParam();
  const auto files = ModelFiles::open(golden_fp8() / model);
  const auto backend = make_backend(chip, {.threads = 1});
  const std::vector<int32_t> prompt = prompt_of(model);
  const std::vector<float> exact = read_floats(golden_fp8() / model / "expected.f32"),
                           rounded = read_floats(golden_fp8() / model / "expected.f8.f32");
  ASSERT_EQ(exact.size(), prompt.size() * kVocabulary);
  const std::vector<float> plain = logits(*files, *backend, {.compute = Policy::kF32}, prompt, prompt.size());
  ASSERT_EQ(plain.size(), exact.size());
  EXPECT_LE(worst_position(exact, plain, kVocabulary), 1e-4);

  // Where an input is nearly halfway between two numbers of E4M3 the last place of what came before decides:
  // few of them fall otherwise than in PyTorch, and one moves a logit as much as all the rounding together
  // moves it.
  const std::vector<float> got = logits(*files, *backend, {}, prompt, prompt.size());
  const double effect = root_mean_square(exact, rounded);
  EXPECT_GT(effect, 0.02);
  EXPECT_LE(root_mean_square(rounded, got), 0.1 * effect);
  for (const size_t chunk : {size_t{1}, size_t{7}}) {  // batch invariance
    const std::vector<float> again = logits(*files, *backend, {}, prompt, chunk);
    EXPECT_EQ(std::memcmp(got.data(), again.data(), got.size() * sizeof(float)), 0) << "chunks of " << chunk;
  }
}

std::vector<Fp8Case> fp8_cases() {
  std::vector<Fp8Case> cases;
  for (const std::string model : {"llama-block", "llama-tensor", "llama-channel", "qwen3-moe-block"})
    for (const std::string chip : {"reference", "cpu"}) cases.push_back({model, chip});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Kinds, Fp8ModelTest, ::testing::ValuesIn(fp8_cases()), [](const auto& param) {
  std::string name = param.param.model + "_" + param.param.chip;
  std::ranges::replace(name, '-', '_');
  return name;
});

// One scale for 32 columns of a row: BF16, exactly.
TEST(Fp8ModelTest, MicroscalingIsReadAsFloats) {
  const auto files = ModelFiles::open(golden_fp8() / "llama-mx");
  const TensorInfo& matrix = *files->find("model.layers.0.mlp.down_proj.weight");
  EXPECT_EQ(matrix.dtype, DType::kBF16);
  EXPECT_TRUE(files->is_fp8(matrix));
  const std::vector<int32_t> prompt = prompt_of("llama-mx");
  const std::vector<float> exact = read_floats(golden_fp8() / "llama-mx" / "expected.f32");
  for (const std::string chip : {"reference", "cpu"}) {
    const auto backend = make_backend(chip, {.threads = 1});
    const std::vector<float> got = logits(*files, *backend, {.compute = Policy::kF32}, prompt, prompt.size());
    ASSERT_EQ(got.size(), exact.size());
    EXPECT_LE(worst_position(exact, got, kVocabulary), 1e-4) << chip;
  }
}

// The model with its FP8 weights written as floats.
std::shared_ptr<ModelFiles> as_floats(const std::string& model, const testing::fs::path& folder) {
  const auto files = ModelFiles::open(golden_fp8() / model);
  std::vector<std::vector<float>> memory;
  std::vector<TensorToWrite> tensors;
  for (const TensorInfo& tensor : files->tensors()) {
    std::vector<float> values(static_cast<size_t>(tensor.elements()));
    dequantize(tensor.dtype, files->bytes(tensor).data(), tensor.elements(), values.data());
    memory.push_back(std::move(values));
  }
  for (size_t i = 0; i < memory.size(); ++i) {
    const std::vector<float>& values = memory[i];
    tensors.push_back({files->tensors()[i].name, DType::kF32, files->tensors()[i].shape,
                       [&values] { return std::as_bytes(std::span(values)); }});
  }
  write_safetensors(folder / "model.safetensors", tensors);
  Json config = files->config();
  config.erase("quantization_config");
  testing::write_text(folder / "config.json", dump_json(config));
  return ModelFiles::open(folder);
}

// What was FP8 in blocks of 128 x 128 comes out as it was, but for the last place of its scales.
TEST(QuantizeF8Test, FloatsBecomeWhatTheCheckpointHas) {
  for (const std::string model : {"llama-block", "qwen3-moe-block"}) {
    const testing::TemporaryFolder folder;
    const auto floats = as_floats(model, folder.path());
    const auto backend = make_backend("cpu", {.threads = 2});
    const std::vector<int32_t> prompt = prompt_of(model);
    const auto decoder = Decoder::load(*floats, *backend, {.quantize_f8 = true});
    EXPECT_EQ(decoder->work().compute, Compute::kF8);
    const std::vector<float> expected =
        logits(*ModelFiles::open(golden_fp8() / model), *backend, {.compute = Policy::kF32}, prompt, 40);
    const std::vector<float> got =
        logits(*floats, *backend, {.compute = Policy::kF32, .quantize_f8 = true}, prompt, 40);
    EXPECT_LE(worst_position(expected, got, kVocabulary), 1e-5) << model;
  }
}

// Numbers of BF16 in blocks of 128 x 128, quantized as DeepSeek's are, come out of floats to the bit: the
// largest of a block is in the file. So `qiao train --dtype fp8` begins as the checkpoint serves.
TEST(QuantizeF8Test, ACheckpointMadeOfBf16ComesOutToTheBit) {
  const testing::TemporaryFolder folder;
  const auto floats = as_floats("llama-block", folder.path());
  const auto from = ModelFiles::open(golden_fp8() / "llama-block");
  std::deque<std::vector<std::byte>> memory;
  std::vector<TensorToWrite> tensors;
  const auto add = [&](std::string name, DType dtype, std::vector<int64_t> shape,
                       std::vector<std::byte> bytes) {
    memory.push_back(std::move(bytes));
    tensors.push_back({std::move(name), dtype, std::move(shape),
                       [&kept = memory.back()] { return std::span<const std::byte>(kept); }});
  };
  for (const TensorInfo& tensor : floats->tensors()) {
    std::vector<float> values(static_cast<size_t>(tensor.elements()));
    to_floats(tensor.dtype, floats->bytes(tensor).data(), values);
    std::vector<std::byte> rounded(values.size() * sizeof(uint16_t));
    from_floats(values, DType::kBF16, rounded.data());
    to_floats(DType::kBF16, rounded.data(), values);
    if (!from->is_fp8(*from->find(tensor.name))) {
      add(tensor.name, DType::kBF16, tensor.shape, std::move(rounded));
      continue;
    }
    const int64_t rows = tensor.shape[0], columns = tensor.shape[1], down = (rows + 127) / 128,
                  across = columns / 128;
    std::vector<std::byte> numbers(static_cast<size_t>(rows * columns));
    std::vector<float> scales(static_cast<size_t>(down * across));
    for (size_t i = 0; i < values.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      float& scale = scales[static_cast<size_t>(at / columns / 128 * across + at % columns / 128)];
      scale = std::max(scale, std::abs(values[i]) / kMostE4M3);
    }
    for (size_t i = 0; i < values.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      const float scale = scales[static_cast<size_t>(at / columns / 128 * across + at % columns / 128)];
      numbers[i] = static_cast<std::byte>(float_to_e4m3(values[i] / scale));
    }
    add(tensor.name, DType::kF8_E4M3, tensor.shape, std::move(numbers));
    const std::span<const std::byte> raw = std::as_bytes(std::span(scales));
    add(tensor.name + "_scale_inv", DType::kF32, {down, across}, {raw.begin(), raw.end()});
  }
  const testing::TemporaryFolder made;
  write_safetensors(made.path() / "model.safetensors", tensors);
  testing::write_text(made.path() / "config.json", dump_json(from->config()));
  const auto backend = make_backend("cpu", {.threads = 1});
  const std::vector<int32_t> prompt = prompt_of("llama-block");
  const std::vector<float> served = logits(*ModelFiles::open(made.path()), *backend, {}, prompt, 40);
  const auto trained = ModelFiles::open(made.path(), {.fp8_as_floats = true});
  EXPECT_EQ(trained->find("model.layers.0.mlp.down_proj.weight")->dtype, DType::kF32);
  EXPECT_EQ(logits(*trained, *backend, {.float_weights = DType::kBF16, .quantize_f8 = true}, prompt, 40),
            served);
}

// Whose way back may be in E4M3: asked for, and of squares.
TEST(QuantizeF8Test, KnowsScalesOfSquares) {
  const auto backend = make_backend("cpu", {.threads = 2});
  const auto is_square = [&](const ModelFiles& files, bool asked) {
    const auto decoder = Decoder::load(files, *backend, {.quantize_f8 = asked});
    return decoder->weights().layers.front().mlp.gate_up.pieces.front().weight->square_scales();
  };
  EXPECT_TRUE(is_square(*ModelFiles::open(golden_fp8() / "llama-block"), true));
  EXPECT_FALSE(is_square(*ModelFiles::open(golden_fp8() / "llama-block"), false));
  EXPECT_FALSE(is_square(*ModelFiles::open(golden_fp8() / "llama-channel"), true));
  const testing::TemporaryFolder folder;
  EXPECT_TRUE(is_square(*as_floats("llama-block", folder.path()), true));
}

TEST(QuantizeF8Test, RefusesWhatItCannotQuantize) {
  const auto backend = make_backend("cpu", {.threads = 1});
  const auto refusal = [&](const ModelFiles& files) -> std::string {
    try {
      Decoder::load(files, *backend, {.quantize_f8 = true});
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(refusal(*testing::ModelFolder("llama").open()), HasSubstr("none of its layers' matrices"));
}

TEST(Fp8ModelTest, WithoutScalesIsRefusedByName) {
  const testing::TemporaryFolder folder;
  std::string bytes = read_file(golden_fp8() / "llama-block" / "model.safetensors");
  const std::string name = "model.layers.0.mlp.down_proj.weight_scale_inv";
  const size_t at = bytes.find(name);
  ASSERT_NE(at, std::string::npos);
  bytes[at + name.size() - 1] = 'x';
  testing::write_text(folder.path() / "model.safetensors", bytes);
  testing::write_text(folder.path() / "config.json", read_file(golden_fp8() / "llama-block" / "config.json"));
  const auto backend = make_backend("cpu", {.threads = 1});
  try {
    Decoder::load(*ModelFiles::open(folder.path()), *backend);
    ADD_FAILURE() << "not refused";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(),
                HasSubstr("model.layers.0.mlp.down_proj.weight is F8_E4M3[128, 256] without scales"));
    EXPECT_THAT(error.what(), HasSubstr("model.layers.0.mlp.down_proj.weight_scale_inv"));
  }
}

}  // namespace
}  // namespace qiao
