#include "backend/ops/linear.h"

#include <cmath>

#include "backend/op_test.h"
#include "tensor/half.h"

namespace qiao {
namespace {

class LinearTest : public ::testing::Test {
 protected:
  LinearTest() {
    op_.x = x_, op_.weight = weight_.get(), op_.bias = bias_, op_.residual = residual_, op_.y = y_;
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  std::unique_ptr<Weight> weight_ = weight_of(*chip_, 2, 3, {1, 2, 3, -1, 0, 4});
  Floats x_{{2, 3}, {1, 10, 100, 0.5, 0, -1}};
  Floats bias_{{2}, {0.25, -0.5}};
  Floats residual_{{2, 2}, {1000, 2000, 3000, 4000}};
  Floats y_{{2, 2}};
  Linear op_;
};

TEST_F(LinearTest, AnExampleByHand) {
  chip_->linear(op_);
  // 1 + 20 + 300 + 0.25 + 1000; -1 + 400 - 0.5 + 2000; 0.5 - 3 + 0.25 + 3000; -0.5 - 4 - 0.5 + 4000
  EXPECT_THAT(y_.list(), ::testing::ElementsAre(1321.25f, 2398.5f, 2997.75f, 3995.0f));
}

TEST_F(LinearTest, TheActivationComesBeforeTheResidual) {
  op_.activation = Activation::kSoftCap;
  op_.soft_cap = 2;
  chip_->linear(op_);
  EXPECT_FLOAT_EQ(y_.data()[2], 3000 + 2 * std::tanh(-2.25f / 2));
  op_.activation = Activation::kSilu;
  chip_->linear(op_);
  EXPECT_FLOAT_EQ(y_.data()[2], 3000 - 2.25f / (1 + std::exp(2.25f)));
}

TEST_F(LinearTest, YMayBeTheResidual) {
  op_.residual = op_.y = residual_;
  chip_->linear(op_);
  EXPECT_THAT(residual_.list(), ::testing::ElementsAre(1321.25f, 2398.5f, 2997.75f, 3995.0f));
}

TEST_F(LinearTest, NoRowsAreNoWork) {
  op_.x = op_.x.slice(0, 0), op_.y = op_.y.slice(0, 0), op_.residual = {};
  chip_->linear(op_);
  EXPECT_EQ(y_.data()[0], 0);
}

TEST_F(LinearTest, Bf16RoundsActivationsToNearestEven) {
  const uint16_t one = float_to_bf16(1.0f);
  WeightSource source;
  source.columns = 1;
  source.parts = {{DType::kBF16, 1, reinterpret_cast<const std::byte*>(&one)}};
  const auto weight = chip_->make_weight(source);
  // BF16 has 8 bits: 257 lies between 256 and 258, and goes to the even 256; 259 goes to 260.
  Floats x({2, 1}, {257, 259}), y({2, 1});
  Linear op;
  op.x = x, op.weight = weight.get(), op.compute = Compute::kBF16, op.y = y;
  chip_->linear(op);
  EXPECT_THAT(y.list(), ::testing::ElementsAre(256, 260));
}

TEST_F(LinearTest, Q8QuantizesActivationsInBlocksOf32) {
  // One Q8_0 block: scale 1, quants 1, 2, 3 and zeros.
  std::vector<std::byte> block(34);
  const uint16_t one = float_to_f16(1.0f);
  std::memcpy(block.data(), &one, 2);
  for (int i = 0; i < 3; ++i) block[static_cast<size_t>(2 + i)] = static_cast<std::byte>(i + 1);
  WeightSource source;
  source.columns = 32;
  source.parts = {{DType::kQ8_0, 1, block.data()}};
  const auto weight = chip_->make_weight(source);
  // Row 0: the largest is 127, so the scale is 1: 2.5 rounds to 2, 3.5 to 4, and the sum is 127 + 2*2 + 3*4.
  // Row 1: below the least that is quantized, all zero.
  Floats x({2, 32}, {127, 2.5, 3.5}), y({2, 1});
  x.data()[32] = 0x1p-101f;
  Linear op;
  op.x = x, op.weight = weight.get(), op.compute = Compute::kQ8, op.y = y;
  chip_->linear(op);
  EXPECT_THAT(y.list(), ::testing::ElementsAre(143, 0));
}

TEST_F(LinearTest, F8RoundsActivationsInBlocksOf128) {
  // One block: scale 0.5, numbers 1, 2, 3 and zeros.
  std::vector<std::byte> block(132);
  block[0] = std::byte{0x38}, block[1] = std::byte{0x40}, block[2] = std::byte{0x44};
  const float half = 0.5f;
  std::memcpy(block.data() + 128, &half, sizeof half);
  WeightSource source;
  source.columns = 128;
  source.parts = {{DType::kF8_128, 1, block.data()}};
  const auto weight = chip_->make_weight(source);
  // Row 0: the largest is 448, so the scale is 1. From 16 on numbers are 2 apart: 17 rounds to 16, 19 to 20,
  // and the sum is half of 448 + 2*16 + 3*20. Row 1: below the least that is rounded, all zero. Row 2: not
  // finite.
  Floats x({3, 128}, {448, 17, 19}), y({3, 1});
  x.data()[128] = 0x1p-101f;
  x.data()[256 + 5] = INFINITY;
  Linear op;
  op.x = x, op.weight = weight.get(), op.compute = Compute::kF8, op.y = y;
  chip_->linear(op);
  EXPECT_EQ(y.list()[0], 270);
  EXPECT_EQ(y.list()[1], 0);
  EXPECT_TRUE(std::isnan(y.list()[2]));
  op.compute = Compute::kQ8;
  EXPECT_EQ(refusal(op),
            "linear: compute is Q8, but weight rows from 0 are F8_128, expected a block format of integers");
  op = op_, op.compute = Compute::kF8;
  EXPECT_EQ(refusal(op), "linear: compute is F8, but weight rows from 0 are F32, expected F8_128");
}

TEST_F(LinearTest, CountsItsWork) {
  EXPECT_EQ(op_.flops(), 2 * 2 * 3 * 2);
  EXPECT_EQ(op_.bytes(), 4 * (6 + 6 + 2 + 4 + 4));
}

TEST_F(LinearTest, RefusesShapes) {
  EXPECT_EQ(refusal(op_), "");
  Linear op = op_;
  op.weight = nullptr;
  EXPECT_EQ(refusal(op), "linear: weight is absent");
  op = op_, op.x = {};
  EXPECT_EQ(refusal(op), "linear: x is absent");
  op = op_, op.x = reshaped(x_, {3, 2});
  EXPECT_EQ(refusal(op), "linear: x is F32[3, 2], expected F32[3, 3]");
  op = op_, op.x = reshaped(x_, {1, 2, 3});
  EXPECT_EQ(refusal(op), "linear: x is F32[1, 2, 3], expected 2 dimensions");
  op = op_, op.y = reshaped(y_, {1, 4});
  EXPECT_EQ(refusal(op), "linear: y is F32[1, 4], expected F32[2, 2]");
  op = op_, op.y = {};
  EXPECT_EQ(refusal(op), "linear: y is absent, expected F32[2, 2]");
  op = op_, op.bias = reshaped(bias_, {1});
  EXPECT_EQ(refusal(op), "linear: bias is F32[1], expected F32[2]");
  op = op_, op.residual = reshaped(residual_, {2, 1});
  EXPECT_EQ(refusal(op), "linear: residual is F32[2, 1], expected F32[2, 2]");
}

TEST_F(LinearTest, RefusesDtypes) {
  op_.x.dtype = DType::kF16;
  EXPECT_EQ(refusal(op_), "linear: x is F16[2, 3], expected F32[2, 3]");
}

TEST_F(LinearTest, RefusesMemoryThatIsNotThere) {
  Linear op = op_;
  op.y.data = nullptr;
  EXPECT_EQ(refusal(op), "linear: y F32[2, 2] has no memory");
  op = op_, op.y.data = reinterpret_cast<char*>(op_.y.data) + 2;
  EXPECT_EQ(refusal(op), "linear: y F32[2, 2] is not aligned to its elements");
}

TEST_F(LinearTest, RefusesStrides) {
  Linear op = op_;
  std::swap(op.x.stride[0], op.x.stride[1]);
  op.x.stride = {1, 2};
  EXPECT_EQ(refusal(op), "linear: x F32[2, 3] has stride 2 in its last dimension, expected 1");
  op = op_, op.y.stride = {1, 1};
  EXPECT_EQ(refusal(op), "linear: y F32[2, 2] has strides [1, 1] that put two elements at one address");
  op = op_, op.bias.stride = {2};
  EXPECT_EQ(refusal(op), "linear: bias F32[2] has strides [2], expected it without gaps");
}

TEST_F(LinearTest, RefusesOverlap) {
  Linear op = op_;
  op.y = reshaped(x_, {2, 2});
  EXPECT_EQ(refusal(op), "linear: y F32[2, 2] overlaps x F32[2, 3]");
  op = op_, op.bias = reshaped(y_, {2});
  EXPECT_EQ(refusal(op), "linear: y F32[2, 2] overlaps bias F32[2]");
  Floats long_memory({6});
  op = op_, op.residual = reshaped(long_memory, {2, 2});
  op.y = op.residual, op.y.data = long_memory.data() + 1;
  EXPECT_EQ(refusal(op), "linear: y F32[2, 2] overlaps residual F32[2, 2] without being it");
}

TEST_F(LinearTest, RowsThatInterleaveDoNotOverlap) {
  Floats wide({2, 8});
  op_.y = wide.tensor().narrow(1, 0, 2);
  op_.residual = wide.tensor().narrow(1, 2, 2);
  EXPECT_EQ(refusal(op_), "");
  op_.residual = wide.tensor().narrow(1, 1, 2);
  EXPECT_THAT(refusal(op_), ::testing::HasSubstr("overlaps residual"));
}

TEST_F(LinearTest, RefusesComputeThatTheWeightHasNot) {
  op_.compute = Compute::kQ8;
  EXPECT_EQ(refusal(op_),
            "linear: compute is Q8, but weight rows from 0 are F32, expected a block format of integers");
  op_.compute = Compute::kBF16;
  EXPECT_EQ(refusal(op_), "linear: compute is BF16, but weight rows from 0 are F32, expected BF16");
}

TEST_F(LinearTest, RefusesASoftCapOfZero) {
  op_.activation = Activation::kSoftCap;
  EXPECT_EQ(refusal(op_), "linear: soft_cap is 0, expected it above 0 with a soft-capped activation");
}

TEST_F(LinearTest, RefusesSeveralExperts) {
  const auto experts = weight_of(*chip_, 2, 3, {}, 4);
  op_.weight = experts.get();
  EXPECT_EQ(refusal(op_), "linear: weight [4, 2, 3] has 4 experts, expected 1");
}

TEST_F(LinearTest, RefusesAWorkspaceOfTheWrongKind) {
  Bytes memory({192});
  Linear op = op_;
  op.workspace = memory.tensor().slice(1, 64);
  EXPECT_EQ(refusal(op), "linear: workspace is not 64-byte aligned");
  op.workspace = reshaped(memory, {3, 64});
  EXPECT_EQ(refusal(op), "linear: workspace is U8[3, 64], expected U8 of one dimension without gaps");
  op.workspace = Tensor(y_.data(), DType::kU8, {16});
  EXPECT_EQ(refusal(op), "linear: workspace U8[16] overlaps y F32[2, 2]");
  op.workspace = memory;
  EXPECT_EQ(refusal(op), "");
}

class GroupedLinearTest : public ::testing::Test {
 protected:
  GroupedLinearTest() { op_.x = x_, op_.weight = weight_.get(), op_.counts = counts_, op_.y = y_; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  std::unique_ptr<Weight> weight_ = weight_of(*chip_, 1, 2, {1, 2, 10, 20, 100, 200}, 3);
  Floats x_{{3, 2}, {1, 1, 2, 0, 0, 3}};
  Ints counts_{{3}, {1, 0, 2}};
  Floats y_{{3, 1}};
  GroupedLinear op_;
};

TEST_F(GroupedLinearTest, AnExampleByHand) {
  chip_->grouped_linear(op_);
  EXPECT_THAT(y_.list(), ::testing::ElementsAre(3, 200, 600));  // the second expert has no row
  EXPECT_EQ(op_.flops(), 2 * 3 * 2);
  EXPECT_EQ(op_.bytes(), 4 * (6 + 6 + 3 + 3));
}

TEST_F(GroupedLinearTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  GroupedLinear op = op_;
  op.weight = nullptr;
  EXPECT_EQ(refusal(op), "grouped_linear: weight is absent");
  op = op_, op.counts = reshaped(counts_, {2});
  EXPECT_EQ(refusal(op), "grouped_linear: counts is I32[2], expected I32[3]");
  op = op_, op.x = reshaped(x_, {2, 3});
  EXPECT_EQ(refusal(op), "grouped_linear: x is F32[2, 3], expected F32[2, 2]");
  op = op_, op.y = reshaped(y_, {1, 3});
  EXPECT_EQ(refusal(op), "grouped_linear: y is F32[1, 3], expected F32[3, 1]");
  op = op_, op.y = reshaped(x_, {3, 1});
  EXPECT_EQ(refusal(op), "grouped_linear: y F32[3, 1] overlaps x F32[3, 2]");
  op = op_, op.compute = Compute::kQ8;
  EXPECT_EQ(
      refusal(op),
      "grouped_linear: compute is Q8, but weight rows from 0 are F32, expected a block format of integers");
  op = op_, op.workspace = reshaped(y_, {3, 1});
  EXPECT_EQ(refusal(op), "grouped_linear: workspace is F32[3, 1], expected U8 of one dimension without gaps");
}

}  // namespace
}  // namespace qiao
