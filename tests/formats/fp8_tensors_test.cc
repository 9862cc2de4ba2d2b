// FP8 tensors and their scales: each kind of checkpoint, and what is refused.
#include "formats/fp8_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "formats/model_files.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"
#include "tensor/dequantize.h"
#include "tensor/half.h"

namespace qiao {
namespace {

struct Part {
  std::string name, dtype;
  std::vector<int64_t> shape;
};

// A directory whose tensors have bytes that count up, and scales 1, 2, 3…
class Fp8Folder {
 public:
  Fp8Folder(const std::vector<Part>& parts, const std::string& config = "{}") {
    Json header = Json::object();
    std::string data;
    for (const Part& part : parts) {
      int64_t count = 1;
      for (const int64_t size : part.shape) count *= size;
      const size_t begin = data.size();
      for (int64_t i = 0; i < count; ++i) {
        if (part.dtype == "F32") append(data, static_cast<float>(i + 1));
        if (part.dtype == "BF16") append(data, float_to_bf16(static_cast<float>(i + 1)));
        if (part.dtype.starts_with("F8")) data += static_cast<char>(i * 7 % 127);
      }
      header[part.name] = {
          {"dtype", part.dtype}, {"shape", part.shape}, {"data_offsets", {begin, data.size()}}};
    }
    const std::string json = dump_json(header);
    std::string file;
    append(file, static_cast<uint64_t>(json.size()));
    write("model.safetensors", file + json + data);
    write("config.json", config);
  }
  std::shared_ptr<ModelFiles> open() const { return ModelFiles::open(folder_.path()); }

 private:
  template <typename T>
  static void append(std::string& to, T value) {
    to.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_.path() / name, std::ios::binary) << bytes;
  }
  testing::TemporaryDirectory folder_;
};

float number(int64_t i) { return e4m3_to_float(static_cast<uint8_t>(i * 7 % 127)); }

std::vector<float> values(const ModelFiles& files, const std::string& name) {
  const TensorInfo* tensor = files.find(name);
  std::vector<float> floats(static_cast<size_t>(tensor->elements()));
  const std::span<const std::byte> bytes = files.bytes(*tensor);
  EXPECT_EQ(bytes.size(), tensor->bytes);
  dequantize(tensor->dtype, bytes.data(), tensor->elements(), floats.data());
  return floats;
}

struct Kind {
  std::string name, scales, dtype;
  std::vector<int64_t> weight, scale;
  std::function<int64_t(int64_t row, int64_t column)> index;  // of the scale
  std::string config = "{}";
  DType expected = DType::kF8_128;
};

TEST(Fp8TensorsTest, EveryKindOfScalesGivesNumberTimesScale) {
  const std::string blocks = R"({"quantization_config":{"weight_block_size":[128,128]}})";
  const std::string structure =
      R"({"quantization_config":{"config_groups":{"group_0":{"weights":{"block_structure":[64,128]}}}}})";
  const Kind kinds[] = {
      {"blocks",
       "_scale_inv",
       "F32",
       {200, 256},
       {2, 2},
       [](int64_t n, int64_t k) { return n / 128 * 2 + k / 128; },
       blocks},
      {"blocks not told",
       "_scale_inv",
       "BF16",
       {200, 256},
       {2, 2},
       [](int64_t n, int64_t k) { return n / 128 * 2 + k / 128; }},
      {"blocks of compressed-tensors",
       "_scale",
       "F32",
       {200, 256},
       {4, 2},
       [](int64_t n, int64_t k) { return n / 64 * 2 + k / 128; },
       structure},
      {"blocks of ModelOpt",
       "_scale",
       "F32",
       {200, 256},
       {2, 1, 2, 1},
       [](int64_t n, int64_t k) { return n / 128 * 2 + k / 128; }},
      {"one", "_scale", "F32", {7, 128}, {}, [](int64_t, int64_t) { return 0; }},
      {"one of one", "_scale", "BF16", {200, 256}, {1}, [](int64_t, int64_t) { return 0; }},
      {"one inverse", "_scale_inv", "F32", {200, 256}, {1}, [](int64_t, int64_t) { return 0; }},
      {"rows", "_scale", "BF16", {200, 256}, {200, 1}, [](int64_t n, int64_t) { return n; }},
      {"rows of one dimension", "_scale", "F32", {200, 256}, {200}, [](int64_t n, int64_t) { return n; }},
      {"no whole blocks",
       "_scale_inv",
       "F32",
       {200, 192},
       {2, 2},
       [](int64_t n, int64_t k) { return n / 128 * 2 + k / 128; },
       blocks,
       DType::kF32},
      {"experts in blocks",
       "_scale_inv",
       "F32",
       {3, 200, 256},
       {3, 2, 2},
       [](int64_t n, int64_t k) { return n / 200 * 4 + n % 200 / 128 * 2 + k / 128; },
       blocks},
      {"one an expert",
       "_scale",
       "F32",
       {3, 200, 256},
       {3, 1, 1},
       [](int64_t n, int64_t) { return n / 200; }},
      {"rows of experts", "_scale", "F32", {3, 200, 256}, {3, 200, 1}, [](int64_t n, int64_t) { return n; }},
  };
  for (const Kind& kind : kinds) {
    SCOPED_TRACE(kind.name);
    const Fp8Folder folder({{"a.weight", "F8_E4M3", kind.weight},
                            {"a.weight" + kind.scales, kind.dtype, kind.scale},
                            {"a.input_scale", "F32", {}},
                            {"a.k_scale", "F32", {1}},
                            {"b.weight", "BF16", {4}}},
                           kind.config);
    const auto files = folder.open();
    ASSERT_EQ(files->tensors().size(), 2u);
    EXPECT_EQ(files->find("a.weight")->dtype, kind.expected);
    EXPECT_EQ(files->find("a.weight")->shape, kind.weight);
    const std::vector<float> got = values(*files, "a.weight");
    const int64_t columns = kind.weight.back();
    for (int64_t i = 0; i < static_cast<int64_t>(got.size()); ++i) {
      const auto scale = static_cast<float>(kind.index(i / columns, i % columns) + 1);
      ASSERT_EQ(got[static_cast<size_t>(i)], number(i) * scale) << i;
    }
    files->release(*files->find("a.weight"));
    EXPECT_EQ(values(*files, "a.weight"), got);  // made again
    EXPECT_EQ(values(*files, "b.weight"), (std::vector<float>{1, 2, 3, 4}));
  }
}

// Of keys and values, under each name that checkpoints have them: a row of the cache has its own here.
TEST(Fp8TensorsTest, ScalesOfTheCacheAreReadOver) {
  for (const std::string layer : {"a.self_attn", "a.self_attn.attn", "a.self_attn.k_proj"}) {
    for (const std::string dtype : {"F8_E4M3", "BF16"}) {
      std::vector<Part> parts = {{"a.weight", dtype, {4, 128}}};
      for (const std::string name : {"k_scale", "v_scale", "q_scale", "prob_scale", "kv_scale",
                                     "kv_cache_scale", "k_zero_point", "v_zero_point", "output_scale"}) {
        parts.push_back({layer + "." + name, "F32", {1}});
      }
      const Fp8Folder folder(parts);
      const auto files = folder.open();
      ASSERT_EQ(files->tensors().size(), 1u) << layer << ", " << dtype;
      EXPECT_EQ(files->tensors()[0].name, "a.weight");
    }
  }
}

TEST(Fp8TensorsTest, WithoutScalesItStaysAsItIs) {
  const auto files = Fp8Folder({{"a.weight", "F8_E4M3", {4, 128}}}).open();
  EXPECT_EQ(files->find("a.weight")->dtype, DType::kF8_E4M3);
}

TEST(Fp8TensorsTest, WrongScalesAreRefusedByName) {
  const auto open = [](const std::string& scales, const std::string& dtype, std::vector<int64_t> shape,
                       const std::string& config = "{}") {
    return Fp8Folder({{"a.weight", "F8_E4M3", {200, 256}}, {"a.weight" + scales, dtype, std::move(shape)}},
                     config)
        .open();
  };
  EXPECT_QIAO_ERROR(open("_scale", "F32", {3, 2}), kInvalidInput, "\"a.weight_scale\" is F32[3, 2]", "[2, 2]",
                    "F8_E4M3[200, 256]");
  EXPECT_QIAO_ERROR(open("_scale", "F32", {256}), kInvalidInput, "\"a.weight_scale\" is F32[256]",
                    "200 rows");
  EXPECT_QIAO_ERROR(open("_scale", "F32", {1, 200}), kInvalidInput, "\"a.weight_scale\" is F32[1, 200]");
  EXPECT_QIAO_ERROR(open("_scale", "F32", {0}), kInvalidInput, "\"a.weight_scale\" is F32[0]");
  EXPECT_QIAO_ERROR(
      open("_scale_inv", "F32", {1, 1}, R"({"quantization_config":{"weight_block_size":[128,128]}})"),
      kInvalidInput, "\"a.weight_scale_inv\" is F32[1, 1]", "[2, 2] for blocks of 128 x 128");
  EXPECT_QIAO_ERROR(open("_scale_inv", "F8_E4M3", {2, 2}), kUnsupported,
                    "\"a.weight_scale_inv\" is F8_E4M3[2, 2]", "F32, F16 or BF16");
  for (const std::string size :
       {"[128]", "[0,128]", "[-1,128]", "128", "[1.5,128]", "[\"a\",1]", "[1,99999999999]"}) {
    EXPECT_QIAO_ERROR(
        open("_scale_inv", "F32", {2, 2}, R"({"quantization_config":{"weight_block_size":)" + size + "}}"),
        kInvalidInput, "config.json", "weight_block_size");
  }
  EXPECT_QIAO_ERROR(Fp8Folder({{"a.weight", "F8_E4M3", {2, 128}},
                               {"a.weight_scale", "F32", {}},
                               {"a.weight_scale_inv", "F32", {}}})
                        .open(),
                    kInvalidInput, "\"a.weight\" has two tensors of scales");
}

}  // namespace
}  // namespace qiao
