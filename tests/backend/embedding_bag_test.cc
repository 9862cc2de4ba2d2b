#include "backend/ops/embedding_bag.h"

#include "backend/op_test.h"

namespace qiao {
namespace {

class EmbeddingBagTest : public ::testing::Test {
 protected:
  EmbeddingBagTest() { op_.table = table_, op_.ids = ids_, op_.offsets = offsets_, op_.out = out_; }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats table_{{3, 2}, {1, 2, 3, 4, 5, 6}};
  Ints ids_{{5}, {2, 0, 2, -1, 3}};
  Ints offsets_{{4}, {0, 3, 3, 5}};
  Floats weights_{{5}, {1, -2, 0.5, 9, 9}};
  Floats out_{{3, 2}};
  EmbeddingBag op_;
};

TEST_F(EmbeddingBagTest, AnExampleByHand) {
  chip_->embedding_bag(op_);
  EXPECT_THAT(out_.list(), ::testing::ElementsAre(11, 14, 0, 0, 0, 0));  // ids outside have no part
  op_.weights = weights_;
  chip_->embedding_bag(op_);
  EXPECT_THAT(out_.list(), ::testing::ElementsAre(5.5, 5, 0, 0, 0, 0));
  EXPECT_EQ(op_.flops(), 20);
  EXPECT_EQ(op_.bytes(), 40 + 20 + 16 + 20 + 24);
}

TEST_F(EmbeddingBagTest, AMeanIsOverTheRowsThatHavePart) {
  ids_.data()[1] = -1;
  op_.mean = true;
  chip_->embedding_bag(op_);
  EXPECT_THAT(out_.list(), ::testing::ElementsAre(5, 6, 0, 0, 0, 0));
}

TEST_F(EmbeddingBagTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  EmbeddingBag op = op_;
  op.table = {};
  EXPECT_EQ(refusal(op), "embedding_bag: table is absent");
  op = op_, op.table.dtype = DType::kQ8_0;
  EXPECT_EQ(refusal(op), "embedding_bag: table is Q8_0[3, 2], expected F32, F16 or BF16");
  op = op_, op.ids.dtype = DType::kI64;
  EXPECT_EQ(refusal(op), "embedding_bag: ids is I64[5], expected I32[5]");
  op = op_, op.offsets = {};
  EXPECT_EQ(refusal(op), "embedding_bag: offsets is absent");
  op = op_, op.offsets = reshaped(offsets_, {0});
  EXPECT_EQ(refusal(op), "embedding_bag: offsets has no element, expected one more than bags");
  op = op_, op.weights = reshaped(weights_, {4});
  EXPECT_EQ(refusal(op), "embedding_bag: weights is F32[4], expected F32[5]");
  op = op_, op.weights = weights_, op.mean = true;
  EXPECT_EQ(refusal(op), "embedding_bag: weights go with a sum, not with a mean");
  op = op_, op.out = reshaped(out_, {2, 3});
  EXPECT_EQ(refusal(op), "embedding_bag: out is F32[2, 3], expected F32[3, 2]");
  op = op_, op.out = table_;
  EXPECT_EQ(refusal(op), "embedding_bag: out F32[3, 2] overlaps table F32[3, 2]");
}

class EmbeddingBagBackwardTest : public ::testing::Test {
 protected:
  EmbeddingBagBackwardTest() {
    op_.table = table_, op_.ids = ids_, op_.offsets = offsets_, op_.dout = dout_;
    op_.dtable = dtable_, op_.drows = drows_, op_.row_ids = row_ids_, op_.dweights = dweights_;
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats table_{{3, 2}, {1, 2, 3, 4, 5, 6}};
  Ints ids_{{4}, {2, 0, 2, -1}};
  Ints offsets_{{3}, {0, 2, 4}};
  Floats weights_{{4}, {1, -2, 0.5, 9}};
  Floats dout_{{2, 2}, {1, 10, 2, 20}};
  Floats dtable_{{3, 2}, {0, 0, 7, 8, 0.5, 0}};
  Floats drows_{{4, 2}, {-1, -1, -1, -1, -1, -1, -1, -1}};
  Ints row_ids_{{4}};
  Floats dweights_{{4}};
  EmbeddingBagBackward op_;
};

TEST_F(EmbeddingBagBackwardTest, AnExampleByHand) {
  op_.weights = weights_;
  chip_->embedding_bag_backward(op_);
  EXPECT_THAT(dtable_.list(), ::testing::ElementsAre(-2, -20, 7, 8, 2.5, 20));
  EXPECT_THAT(drows_.list(), ::testing::ElementsAre(-2, -20, 2, 20, -1, -1, -1, -1));
  EXPECT_THAT(row_ids_.list(), ::testing::ElementsAre(0, 2, -1, -1));
  EXPECT_THAT(dweights_.list(), ::testing::ElementsAre(65, 21, 130, 0));
  EXPECT_EQ(op_.flops(), 48);
  EXPECT_EQ(op_.bytes(), 6 * 32 + 32 + 16 + 12 + 16 + 16 + 16);
}

TEST_F(EmbeddingBagBackwardTest, AMeanIsOverTheRowsThatHavePart) {
  op_.mean = true;
  chip_->embedding_bag_backward(op_);
  EXPECT_THAT(drows_.list(), ::testing::ElementsAre(0.5, 5, 2.5, 25, -1, -1, -1, -1));
}

TEST_F(EmbeddingBagBackwardTest, IsTheDerivativeOfEmbeddingBag) {
  // loss = sum of (out * c)^2; dout = 2 c^2 out. By the table's values, and by the weights.
  const std::vector<double> c = {0.5, -1.5, 2, 1}, table = {0.5, -1, 2, 0.25, -3, 1.5};
  const std::vector<double> weights = {1, -2, 0.5, 9};
  const auto outs = [&](const std::vector<double>& rows, const std::vector<double>& by) {
    std::vector<double> out(4);
    for (size_t i = 0; i < 3; ++i) {
      for (size_t k = 0; k < 2; ++k)
        out[i / 2 * 2 + k] += by[i] * rows[static_cast<size_t>(ids_.data()[i]) * 2 + k];
    }
    return out;
  };
  const auto loss = [&](const std::vector<double>& rows, const std::vector<double>& by) {
    const std::vector<double> out = outs(rows, by);
    double sum = 0;
    for (size_t i = 0; i < 4; ++i) sum += out[i] * c[i] * out[i] * c[i];
    return sum;
  };
  const std::vector<double> out = outs(table, weights);
  for (size_t i = 0; i < 4; ++i) dout_.data()[i] = static_cast<float>(2 * c[i] * c[i] * out[i]);  // exact
  for (size_t i = 0; i < 6; ++i) table_.data()[i] = static_cast<float>(table[i]), dtable_.data()[i] = 0;
  op_.weights = weights_;
  chip_->embedding_bag_backward(op_);
  for (size_t i = 0; i < 6; ++i) {
    const auto of_table = [&](const std::vector<double>& at) { return loss(at, weights); };
    EXPECT_NEAR(dtable_.data()[i], difference_quotient(of_table, table, i), 1e-6) << i;
  }
  for (size_t i = 0; i < 4; ++i) {
    const auto of_weights = [&](const std::vector<double>& at) { return loss(table, at); };
    EXPECT_NEAR(dweights_.data()[i], difference_quotient(of_weights, weights, i), 1e-6) << i;
  }
}

TEST_F(EmbeddingBagBackwardTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  EmbeddingBagBackward op = op_;
  op.dtable = op.drows = op.row_ids = op.dweights = {};
  EXPECT_EQ(refusal(op),
            "embedding_bag_backward: dtable, drows and dweights are absent, expected one of them or more");
  op = op_, op.row_ids = {};
  EXPECT_EQ(refusal(op), "embedding_bag_backward: drows and row_ids go together");
  op = op_, op.dout = reshaped(dout_, {4, 1});
  EXPECT_EQ(refusal(op), "embedding_bag_backward: dout is F32[4, 1], expected F32[2, 2]");
  op = op_, op.dtable = reshaped(dtable_, {2, 3});
  EXPECT_EQ(refusal(op), "embedding_bag_backward: dtable is F32[2, 3], expected F32[3, 2]");
  op = op_, op.drows = reshaped(drows_, {2, 4});
  EXPECT_EQ(refusal(op), "embedding_bag_backward: drows is F32[2, 4], expected F32[4, 2]");
  op = op_, op.row_ids.dtype = DType::kF32;
  EXPECT_EQ(refusal(op), "embedding_bag_backward: row_ids is F32[4], expected I32[4]");
  op = op_, op.dweights = reshaped(dweights_, {3});
  EXPECT_EQ(refusal(op), "embedding_bag_backward: dweights is F32[3], expected F32[4]");
  op = op_, op.weights = weights_, op.mean = true;
  EXPECT_EQ(refusal(op), "embedding_bag_backward: weights go with a sum, not with a mean");
  op = op_, op.dtable = table_;
  EXPECT_EQ(refusal(op), "embedding_bag_backward: dtable F32[3, 2] overlaps table F32[3, 2]");
  op = op_, op.dweights.data = row_ids_.data();
  EXPECT_EQ(refusal(op), "embedding_bag_backward: dweights F32[4] overlaps row_ids I32[4]");
}

}  // namespace
}  // namespace qiao
