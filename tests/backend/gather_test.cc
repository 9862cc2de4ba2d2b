#include "backend/ops/gather.h"

#include <limits>

#include "backend/op_test.h"

namespace qiao {
namespace {

class GatherTest : public ::testing::Test {
 protected:
  GatherTest() { op_ = {table_.get(), ids_, 2.0f, out_}; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  std::unique_ptr<Weight> table_ = weight_of(*chip_, 3, 2, {1, 2, 3, 4, 5, 6});
  Ints ids_{{2}, {2, 0}};
  Floats out_{{2, 2}};
  Gather op_;
};

TEST_F(GatherTest, AnExampleByHand) {
  chip_->gather(op_);
  EXPECT_THAT(out_.list(), ::testing::ElementsAre(10, 12, 2, 4));
  EXPECT_EQ(op_.bytes(), 2 * 8 + 8 + 16);
}

TEST_F(GatherTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  Gather op = op_;
  op.table = nullptr;
  EXPECT_EQ(refusal(op), "gather: table is absent");
  const auto experts = weight_of(*chip_, 3, 2, {}, 2);
  op = op_, op.table = experts.get();
  EXPECT_EQ(refusal(op), "gather: table [2, 3, 2] has 2 experts, expected 1");
  op = op_, op.ids = Tensor(out_.data(), DType::kF32, {2});
  EXPECT_EQ(refusal(op), "gather: ids is F32[2], expected I32[2]");
  op = op_, op.ids = {};
  EXPECT_EQ(refusal(op), "gather: ids is absent");
  op = op_, op.out = reshaped(out_, {1, 4});
  EXPECT_EQ(refusal(op), "gather: out is F32[1, 4], expected F32[2, 2]");
  op = op_, op.scale = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(refusal(op), "gather: scale is not finite");
  op = op_, op.out.data = ids_.data();
  EXPECT_EQ(refusal(op), "gather: out F32[2, 2] overlaps ids I32[2]");
}

class GatherRowsTest : public ::testing::Test {
 protected:
  GatherRowsTest() { op_ = {x_, rows_, out_}; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats x_{{3, 2}, {1, 2, 3, 4, 5, 6}};
  Ints rows_{{2}, {1, 1}};
  Floats out_{{2, 2}};
  GatherRows op_;
};

TEST_F(GatherRowsTest, AnExampleByHand) {
  chip_->gather_rows(op_);
  EXPECT_THAT(out_.list(), ::testing::ElementsAre(3, 4, 3, 4));
}

TEST_F(GatherRowsTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  GatherRows op = op_;
  op.x = reshaped(x_, {6});
  EXPECT_EQ(refusal(op), "gather_rows: x is F32[6], expected 2 dimensions");
  op = op_, op.rows.dtype = DType::kI64;
  EXPECT_EQ(refusal(op), "gather_rows: rows is I64[2], expected I32[2]");
  op = op_, op.out = reshaped(out_, {4, 1});
  EXPECT_EQ(refusal(op), "gather_rows: out is F32[4, 1], expected F32[2, 2]");
  op = op_, op.out.data = x_.data() + 2;
  EXPECT_EQ(refusal(op), "gather_rows: out F32[2, 2] overlaps x F32[3, 2]");
}

class GatherBackwardTest : public ::testing::Test {
 protected:
  GatherBackwardTest() { op_ = {ids_, 2.0f, dout_, dtable_}; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Ints ids_{{3}, {2, 0, 2}};
  Floats dout_{{3, 2}, {1, 2, 3, 4, 10, 20}};
  Floats dtable_{{3, 2}, {0, 0, 7, 8, 0.5, 0}};
  GatherBackward op_;
};

TEST_F(GatherBackwardTest, AnExampleByHand) {
  chip_->gather_backward(op_);
  EXPECT_THAT(dtable_.list(), ::testing::ElementsAre(6, 8, 7, 8, 22.5, 44));
  EXPECT_EQ(op_.flops(), 12);
  EXPECT_EQ(op_.bytes(), 3 * 4 + 3 * 24);
}

TEST_F(GatherBackwardTest, IsTheDerivativeOfGather) {
  // loss = sum of (out * c)^2 with out = 2 * table[ids]; dout = 2 c^2 out.
  const std::vector<double> c = {0.5, -1.5, 2, 1, 0.25, 3};
  const std::vector<double> table = {0.5, -1, 2, 0.25, -3, 1.5};
  const auto loss = [&](const std::vector<double>& at) {
    double sum = 0;
    for (size_t i = 0; i < 6; ++i) {
      const double out = 2 * at[static_cast<size_t>(ids_.data()[i / 2]) * 2 + i % 2] * c[i];
      sum += out * out;
    }
    return sum;
  };
  for (size_t i = 0; i < 6; ++i) {
    const double out = 2 * table[static_cast<size_t>(ids_.data()[i / 2]) * 2 + i % 2];
    dout_.data()[i] = static_cast<float>(2 * c[i] * c[i] * out);  // exact: few bits
    dtable_.data()[i] = 0;
  }
  chip_->gather_backward(op_);
  for (size_t i = 0; i < 6; ++i)
    EXPECT_NEAR(dtable_.data()[i], difference_quotient(loss, table, i), 1e-6) << i;
}

TEST_F(GatherBackwardTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  GatherBackward op = op_;
  op.ids = {};
  EXPECT_EQ(refusal(op), "gather_backward: ids is absent");
  op = op_, op.ids.dtype = DType::kI64;
  EXPECT_EQ(refusal(op), "gather_backward: ids is I64[3], expected I32[3]");
  op = op_, op.dout = reshaped(dout_, {2, 3});
  EXPECT_EQ(refusal(op), "gather_backward: dout is F32[2, 3], expected F32[3, 2]");
  op = op_, op.dtable = reshaped(dtable_, {6});
  EXPECT_EQ(refusal(op), "gather_backward: dtable is F32[6], expected 2 dimensions");
  op = op_, op.dtable.stride = {4, 1};
  EXPECT_EQ(refusal(op), "gather_backward: dtable F32[3, 2] has strides [4, 1], expected it without gaps");
  op = op_, op.scale = std::numeric_limits<float>::infinity();
  EXPECT_EQ(refusal(op), "gather_backward: scale is not finite");
  op = op_, op.dtable = dout_;
  EXPECT_EQ(refusal(op), "gather_backward: dtable F32[3, 2] overlaps dout F32[3, 2]");
  op = op_, op.dtable.data = ids_.data();
  EXPECT_EQ(refusal(op), "gather_backward: dtable F32[3, 2] overlaps ids I32[3]");
}

}  // namespace
}  // namespace qiao
