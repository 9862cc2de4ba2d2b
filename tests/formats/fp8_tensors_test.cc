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
  int first = 127;  // byte of E8M0
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
        if (part.dtype == "F8_E8M0" || part.dtype == "U8")
          data += static_cast<char>(part.first + i);  // 2^(byte - 127)
        if (part.dtype == "F8_E4M3" || part.dtype == "F8_E5M2") data += static_cast<char>(i * 7 % 127);
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
  // Overwrites bytes of the tensors, which lie in the order of their making.
  void damage(size_t place, uint32_t bits, size_t bytes) const {
    std::fstream file(folder_.path() / "model.safetensors", std::ios::binary | std::ios::in | std::ios::out);
    uint64_t header = 0;
    file.read(reinterpret_cast<char*>(&header), sizeof header);
    file.seekp(static_cast<std::streamoff>(sizeof header + header + place));
    file.write(reinterpret_cast<const char*>(&bits), static_cast<std::streamsize>(bytes));
  }

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

std::string groups_of(int64_t size) {
  return fmt::format(R"({{"quantization_config":{{"quant_method":"compressed-tensors","config_groups":{{
      "group_0":{{"weights":{{"type":"float","symmetric":true,"strategy":"group","group_size":{}}}}}}}}}}})",
                     size);
}

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
      {"groups of compressed-tensors",
       "_scale",
       "F32",
       {200, 256},
       {200, 2},
       [](int64_t n, int64_t k) { return n * 2 + k / 128; },
       groups_of(128)},
      {"groups within a block",
       "_scale",
       "F32",
       {6, 256},
       {6, 4},
       [](int64_t n, int64_t k) { return n * 4 + k / 64; },
       groups_of(64),
       DType::kF32},
      {"groups of ModelOpt, which tells no strategy",
       "_scale",
       "F32",
       {6, 256},
       {6, 4},
       [](int64_t n, int64_t k) { return n * 4 + k / 64; },
       R"({"quantization_config":{"config_groups":{"g":{"weights":{"type":"float","group_size":64}}}}})",
       DType::kF32},
      // As many as there are blocks.
      {"two rows", "_scale", "F32", {2, 256}, {2, 1}, [](int64_t n, int64_t) { return n; }},
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

TEST(Fp8TensorsTest, ScalesOfE8M0ArePowersOfTwo) {
  const Fp8Folder folder(
      {{"a.weight", "F8_E4M3", {2, 256, 128}}, {"a.weight_scale_inv", "F8_E8M0", {2, 2, 1}}},
      R"({"quantization_config":{"weight_block_size":[128,128],"scale_fmt":"ue8m0"}})");
  const auto files = folder.open();
  ASSERT_EQ(files->tensors().size(), 1u);
  const std::vector<float> got = values(*files, "a.weight");
  for (int64_t i = 0; i < std::ssize(got); ++i)
    ASSERT_EQ(got[static_cast<size_t>(i)], number(i) * static_cast<float>(1 << i / (128 * 128))) << i;
}

// MXFP8: one for 32 columns of a row, as compressed-tensors, ModelOpt (which tells no strategy, or nothing)
// and Transformers say. A number times a power of two is one of BF16.
TEST(Fp8TensorsTest, MicroscalingBecomesBF16) {
  const std::string modelopt =
      R"({"quantization_config":{"config_groups":{"g":{"weights":{"type":"float","group_size":32}}}}})";
  const std::string pair = R"({"quantization_config":{"weight_block_size":[1,32],"scale_fmt":"ue8m0"}})";
  const Kind kinds[] = {
      {"compressed-tensors", "_scale", "U8", {5, 96}, {5, 3}, {}, groups_of(32)},
      {"ModelOpt", "_scale", "U8", {5, 256}, {5, 8}, {}, modelopt},
      {"not told", "_scale", "U8", {5, 256}, {5, 8}, {}},
      {"E8M0", "_scale_inv", "F8_E8M0", {5, 96}, {5, 3}, {}, pair},
      {"experts", "_scale", "U8", {2, 3, 64}, {2, 3, 2}, {}, groups_of(32)},
  };
  for (const Kind& kind : kinds) {
    SCOPED_TRACE(kind.name);
    const Fp8Folder folder(
        {{"a.weight", "F8_E4M3", kind.weight}, {"a.weight" + kind.scales, kind.dtype, kind.scale, 100}},
        kind.config);
    const auto files = folder.open();
    ASSERT_EQ(files->tensors().size(), 1u);
    EXPECT_EQ(files->tensors()[0].dtype, DType::kBF16);
    EXPECT_TRUE(files->is_fp8(files->tensors()[0]));
    const std::vector<float> got = values(*files, "a.weight");
    for (int64_t i = 0; i < std::ssize(got); ++i)
      ASSERT_EQ(got[static_cast<size_t>(i)], std::ldexp(number(i), static_cast<int>(i / 32) - 27)) << i;
  }
}

TEST(Fp8TensorsTest, FloatsAreMadeWhereTheyAreAskedFor) {
  for (const auto& [dtype, expected] : {std::pair{"F32", DType::kF32}, {"F8_E8M0", DType::kBF16}}) {
    const Fp8Folder folder({{"a.weight", "F8_E4M3", {130, 128}},
                            {"a.weight_scale_inv", dtype, {2, 1}},
                            {"b.weight", "BF16", {4}}});
    const auto blocks = folder.open(), floats = ModelFiles::open(blocks->path(), {.fp8_as_floats = true});
    EXPECT_EQ(blocks->find("a.weight")->dtype, DType::kF8_128);
    EXPECT_EQ(floats->find("a.weight")->dtype, expected);
    EXPECT_EQ(values(*floats, "a.weight"), values(*blocks, "a.weight"));
    EXPECT_FALSE(floats->is_fp8(*floats->find("b.weight")));
  }
}

TEST(Fp8TensorsTest, WhatIsNoNumberIsRefusedAsItIsRead) {
  const auto read = [](const std::string& dtype, int first, std::vector<std::pair<size_t, uint32_t>> damage,
                       bool scales) {
    const Fp8Folder folder({{"a.weight", "F8_E4M3", {300, 256}}, {"a.weight_scale", dtype, {3, 2}, first}});
    for (const auto& [place, bits] : damage)
      folder.damage(scales ? 300 * 256 + 4 * place : place, bits, scales ? 4 : 1);
    const auto files = folder.open();
    return values(*files, "a.weight");
  };
  EXPECT_EQ(read("F32", 0, {}, true).size(), 300u * 256);
  EXPECT_EQ(read("F32", 0, {{1, 0x7b124924}}, true).size(), 300u * 256);  // 448 times it is within F32
  for (const uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7f800000u, 0xff800000u, 0x7b200000u})
    EXPECT_QIAO_ERROR(read("F32", 0, {{3, bits}}, true), kInvalidInput, "\"a.weight_scale\": scale 3 is");
  EXPECT_QIAO_ERROR(read("F8_E8M0", 250, {}, true), kInvalidInput, "\"a.weight_scale\": scale 0 is");
  for (const uint32_t code : {0x7fu, 0xffu})
    EXPECT_QIAO_ERROR(read("F32", 0, {{256 * 299 + 255, code}}, false), kInvalidInput,
                      "\"a.weight\": row 299 has a NaN");
}

// Large ones are made by several threads.
TEST(Fp8TensorsTest, ThreadsMakeTheSame) {
  constexpr int64_t kRows = 3000, kColumns = 384;
  const Fp8Folder folder(
      {{"a.weight", "F8_E4M3", {2, kRows, kColumns}}, {"a.weight_scale", "F32", {2, kRows, 1}}});
  const std::vector<float> got = values(*folder.open(), "a.weight");
  for (int64_t i = 0; i < std::ssize(got); ++i)
    ASSERT_EQ(got[static_cast<size_t>(i)], number(i) * static_cast<float>(i / kColumns + 1)) << i;
  folder.damage(static_cast<size_t>(4321 * kColumns + 5), 0xff, 1);
  const auto files = folder.open();
  for (int i = 0; i < 2; ++i)  // nothing is kept of what failed
    EXPECT_QIAO_ERROR(values(*files, "a.weight"), kInvalidInput, "row 4321 has a NaN");
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
                    "\"a.weight_scale_inv\" is F8_E4M3[2, 2]", "F32, F16, BF16, F8_E8M0 or U8");
  for (const std::string size :
       {"[128]", "[0,128]", "[-1,128]", "128", "[1.5,128]", "[\"a\",1]", "[1,99999999999]"}) {
    EXPECT_QIAO_ERROR(
        open("_scale_inv", "F32", {2, 2}, R"({"quantization_config":{"weight_block_size":)" + size + "}}"),
        kInvalidInput, "config.json", "weight_block_size");
  }
  EXPECT_QIAO_ERROR(
      open("_scale_inv", "F32", {200, 1}, R"({"quantization_config":{"weight_block_size":[128,128]}})"),
      kInvalidInput, "\"a.weight_scale_inv\" is F32[200, 1]");
  for (const std::string size : {"0", "-1", "\"a\"", "1.5", "[]", "99999999999"}) {
    EXPECT_QIAO_ERROR(
        open("_scale", "F32", {2, 2},
             R"({"quantization_config":{"config_groups":{"g":{"weights":{"strategy":"group","group_size":)" +
                 size + "}}}}}"),
        kInvalidInput, "config.json", "group_size");
  }
  EXPECT_QIAO_ERROR(Fp8Folder({{"a.weight", "F8_E4M3", {2, 128}},
                               {"a.weight_scale", "F32", {}},
                               {"a.weight_scale_inv", "F32", {}}})
                        .open(),
                    kInvalidInput, "\"a.weight\" has two tensors of scales");
}

}  // namespace
}  // namespace qiao
