// Weights rewritten from F32 values, on every chip of this program.
#include <cstring>

#include "backend/op_test.h"
#include "tensor/half.h"

namespace qiao {
namespace {

class WriteWeightTest : public ::testing::TestWithParam<std::string_view> {
 protected:
  std::unique_ptr<Backend> chip_ = make_backend(GetParam(), BackendOptions{2});

  std::unique_ptr<Weight> zeros(std::vector<std::pair<DType, int64_t>> segments, int64_t columns,
                                int64_t experts = 1) {
    WeightSource source;
    source.experts = experts;
    source.columns = columns;
    const std::vector<std::byte> bytes(4096);
    for (int64_t e = 0; e < experts; ++e) {
      for (const auto& [dtype, rows] : segments) source.parts.push_back({dtype, rows, bytes.data()});
    }
    return chip_->make_weight(source);
  }
  template <typename T>
  std::vector<T> bits(const Weight& weight, int64_t expert, size_t segment) {
    std::vector<T> bits(static_cast<size_t>(weight.segments()[segment].rows * weight.columns()));
    chip_->read_weight(weight, expert, segment, reinterpret_cast<std::byte*>(bits.data()));
    return bits;
  }
  std::string refusal_of(Weight& weight, int64_t expert, const Tensor& values, ErrorKind kind) {
    try {
      chip_->write_weight(weight, expert, values);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), kind);
      return e.what();
    }
    return "";
  }
};

INSTANTIATE_TEST_SUITE_P(Chips, WriteWeightTest, ::testing::ValuesIn(chip_names()),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(WriteWeightTest, RoundsToNearestEven) {
  const auto weight = zeros({{DType::kF32, 1}, {DType::kF16, 1}, {DType::kBF16, 1}}, 4);
  // F16 has 11 bits: 2049 is between 2048 and 2050 and goes to the even one, 2051 to 2052; 65520 is infinite.
  // BF16 has 8: 257 goes to 256, 259 to 260.
  const Floats values({3, 4}, {1e-40f, 0.1f, -3e38f, 2049, 2049, 2051, 65520, -0.0f, 257, 259, -1, 3e-41f});
  chip_->write_weight(*weight, 0, values);
  EXPECT_THAT(bits<float>(*weight, 0, 0), ::testing::ElementsAre(1e-40f, 0.1f, -3e38f, 2049));
  EXPECT_THAT(bits<uint16_t>(*weight, 0, 1),
              ::testing::ElementsAre(float_to_f16(2048), float_to_f16(2052), 0x7c00, 0x8000));
  // 3e-41 is 0.33 of the least subnormal of BF16, 2^-133.
  EXPECT_THAT(bits<uint16_t>(*weight, 0, 2),
              ::testing::ElementsAre(float_to_bf16(256), float_to_bf16(260), 0xbf80, 0));
}

TEST_P(WriteWeightTest, OpsReadWhatWasWritten) {
  const auto weight = zeros({{DType::kBF16, 2}}, 3);
  chip_->write_weight(*weight, 0, Floats({2, 3}, {1, 2, 3, -1, 0, 259}));
  const Floats x({1, 3}, {1, 10, 100}), y({1, 2}), row({1, 3}), dx({1, 3});
  const Ints id({1}, {1});
  const auto with_workspace = [&](auto op, auto method) {
    const Bytes workspace({static_cast<int64_t>(chip_->workspace_bytes(op)) + 1});
    op.workspace = workspace;
    (chip_.get()->*method)(op);
  };
  Linear linear;
  linear.x = x, linear.weight = weight.get(), linear.y = y;
  with_workspace(linear, &Backend::linear);
  EXPECT_THAT(y.list(), ::testing::ElementsAre(321, 25999));  // 259 became 260
  chip_->gather({weight.get(), id, 1.0f, row});
  EXPECT_THAT(row.list(), ::testing::ElementsAre(-1, 0, 260));
  LinearBackward back;
  back.dy = y, back.weight = weight.get(), back.dx = dx;
  with_workspace(back, &Backend::linear_backward);
  EXPECT_THAT(dx.list(), ::testing::ElementsAre(321 - 25999, 642, 963 + 25999 * 260));
}

TEST_P(WriteWeightTest, OneExpertOfSeveral) {
  const auto weight = zeros({{DType::kF16, 17}, {DType::kF32, 1}}, 2, 3);
  std::vector<float> numbers(36);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i) + 1;
  chip_->write_weight(*weight, 1, Floats({18, 2}, numbers));
  for (const int64_t expert : {0, 2}) {
    EXPECT_THAT(bits<uint16_t>(*weight, expert, 0), ::testing::Each(0)) << expert;
    EXPECT_THAT(bits<float>(*weight, expert, 1), ::testing::Each(0)) << expert;
  }
  const std::vector<uint16_t> written = bits<uint16_t>(*weight, 1, 0);
  for (size_t i = 0; i < 34; ++i) EXPECT_EQ(written[i], float_to_f16(numbers[i])) << i;
  EXPECT_THAT(bits<float>(*weight, 1, 1), ::testing::ElementsAre(35, 36));
}

// Two parts of one handle: each has squares of its own, of its rounded values.
TEST_P(WriteWeightTest, QuantizesSquares) {
  WeightSource source;
  source.columns = 256;
  source.square_scales = true;
  const std::vector<std::byte> bytes(static_cast<size_t>(130 * row_bytes(DType::kF8_128, 256)));
  source.parts = {{DType::kF8_128, 130, bytes.data()}, {DType::kF8_128, 3, bytes.data()}};
  const auto weight = chip_->make_weight(source);
  EXPECT_TRUE(weight->square_scales());
  const Floats values({133, 256});
  float* v = values.data();
  v[0] = -448, v[127 * 256 + 1] = 17.03f;  // 17.03 is 17 in BF16, then 16: even
  v[129 * 256 + 2] = 896, v[130 * 256] = 4.48f, v[200] = 0x1p-101f;
  chip_->write_weight(*weight, 0, values);
  const auto block = [&](size_t segment, int64_t row, int64_t unit) {
    std::vector<std::byte> rows(static_cast<size_t>(weight->segments()[segment].rows * 264));
    chip_->read_weight(*weight, 0, segment, rows.data());
    const std::byte* at = rows.data() + row * 264 + unit * 132;
    float scale = 0;
    std::memcpy(&scale, at + 128, sizeof scale);
    std::vector<float> made(128);
    for (size_t i = 0; i < 128; ++i) made[i] = scale * e4m3_to_float(static_cast<uint8_t>(at[i]));
    made.push_back(scale);
    return made;
  };
  EXPECT_EQ(block(0, 0, 0)[0], -448);
  EXPECT_EQ(block(0, 0, 0)[128], 1);
  EXPECT_EQ(block(0, 0, 1)[128], 0);  // below 2^-100
  EXPECT_EQ(block(0, 127, 0)[1], 16);
  EXPECT_EQ(block(0, 127, 0)[128], 1);
  EXPECT_EQ(block(0, 129, 0)[2], 896);
  EXPECT_EQ(block(0, 129, 0)[128], 2);
  EXPECT_NEAR(block(1, 0, 0)[0], 4.48, 4.48 / 256);
}

TEST_P(WriteWeightTest, Refuses) {
  const auto plain = zeros({{DType::kF32, 2}}, 32, 2),
             mixed = zeros({{DType::kF32, 1}, {DType::kQ8_0, 1}}, 32);
  const Floats values({2, 32}), more({3, 32});
  EXPECT_EQ(refusal_of(*plain, 1, values, ErrorKind::kInvalidInput), "");
  EXPECT_EQ(refusal_of(*plain, 2, values, ErrorKind::kInvalidInput),
            "write_weight: expert is 2, expected it in [0, 2)");
  EXPECT_EQ(refusal_of(*plain, -1, values, ErrorKind::kInvalidInput),
            "write_weight: expert is -1, expected it in [0, 2)");
  EXPECT_EQ(refusal_of(*plain, 0, more, ErrorKind::kInvalidInput),
            "write_weight: values is F32[3, 32], expected F32[2, 32]");
  EXPECT_EQ(refusal_of(*plain, 0, {}, ErrorKind::kInvalidInput),
            "write_weight: values is absent, expected F32[2, 32]");
  const auto of_rows = zeros({{DType::kF8_128, 1}}, 128);
  EXPECT_EQ(refusal_of(*of_rows, 0, Floats({1, 128}), ErrorKind::kUnsupported),
            "write_weight: rows from 0 are F8_128, a block format, which is never quantized again; weights "
            "that change are F32, F16, BF16, or F8_128 with a scale for 128 x 128");
  EXPECT_EQ(
      refusal_of(*mixed, 0, values, ErrorKind::kUnsupported),
      "write_weight: rows from 1 are Q8_0, a block format, which is never quantized again; weights that "
      "change are F32, F16, BF16, or F8_128 with a scale for 128 x 128");
}

}  // namespace
}  // namespace qiao
