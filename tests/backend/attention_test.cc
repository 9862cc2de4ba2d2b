#include "backend/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/op_test.h"
#include "support/expect_error.h"

namespace qiao {
namespace {

// Four keys of one sequence in two pages of two slots, in the order of pages 2 and 0; D = 2, one key head.
class AttentionTest : public ::testing::Test {
 protected:
  AttentionTest() {
    write_ = {k_, v_, slots_, pages_.get()};
    op_.q = q_, op_.pages = pages_.get(), op_.page_table = table_, op_.lengths = lengths_;
    op_.query_starts = starts_, op_.out = out_;
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  std::unique_ptr<KvPages> pages_ = chip_->make_kv_pages({3, 2, 1, 2, DType::kF16});
  const float ln3_ = std::log(3.0f);
  Floats k_{{4, 1, 2}, {0, 0, 1, 0, 0, 1, 0, 0}};
  Floats v_{{4, 1, 2}, {1, 10, 2, 20, 3, 30, 4, 40}};
  Ints slots_{{4}, {4, 5, 0, 1}};
  Floats q_{{2, 2, 2}, {0, 0, ln3_, 0, 0, 0, 0, ln3_}};
  Ints table_{{1, 2}, {2, 0}};
  Ints lengths_{{1}, std::vector<int32_t>{4}};
  Ints starts_{{2}, {0, 2}};
  Floats out_{{2, 2, 2}};
  KvWrite write_;
  AttentionPaged op_;
};

TEST_F(AttentionTest, AnExampleByHand) {
  chip_->kv_write(write_);
  chip_->attention_paged(op_);
  const std::vector<float> out = out_.list();
  // Query 0 is at position 2: its first head sees three equal keys, its second weighs them 1, 3, 1.
  EXPECT_FLOAT_EQ(out[0], 2);
  EXPECT_FLOAT_EQ(out[1], 20);
  EXPECT_FLOAT_EQ(out[2], (1 + 3 * 2 + 3) / 5.0f);
  // Query 1 sees all four: equal, then 1, 1, 3, 1.
  EXPECT_FLOAT_EQ(out[4], 2.5f);
  EXPECT_FLOAT_EQ(out[6], (1 + 2 + 9 + 4) / 6.0f);
}

TEST_F(AttentionTest, TheWindowHidesOldKeys) {
  chip_->kv_write(write_);
  op_.window = 2;
  chip_->attention_paged(op_);
  EXPECT_FLOAT_EQ(out_.data()[0], 2.5f);                // keys 1 and 2
  EXPECT_FLOAT_EQ(out_.data()[6], (3 * 3 + 4) / 4.0f);  // keys 2 and 3
}

TEST_F(AttentionTest, APageBeforeEveryWindowNeedNotBeThere) {
  chip_->kv_write(write_);
  op_.window = 1;
  table_.data()[0] = -1;  // keys 0 and 1; the queries stand at 2 and 3
  chip_->attention_paged(op_);
  EXPECT_EQ(out_.list(), (std::vector<float>{3, 30, 3, 30, 4, 40, 4, 40}));
}

TEST_F(AttentionTest, TheSoftCapBoundsScores) {
  chip_->kv_write(write_);
  op_.soft_cap = 0.5f;
  chip_->attention_paged(op_);
  const double weight = std::exp(0.5 * std::tanh(std::log(3.0) / 0.5));
  EXPECT_NEAR(out_.data()[2], (1 + weight * 2 + 3) / (2 + weight), 1e-6);
}

TEST_F(AttentionTest, PagesRoundToNearestEven) {
  v_.data()[0] = 2049;  // F16 has 11 bits: between 2048 and 2050
  v_.data()[1] = 2051;
  chip_->kv_write(write_);
  op_.lengths.data = starts_.data() + 1;  // [2]: the queries stand at 0 and 1
  chip_->attention_paged(op_);
  EXPECT_EQ(out_.data()[0], 2048);
  EXPECT_EQ(out_.data()[1], 2052);
}

TEST_F(AttentionTest, Q8KeepsThirtyTwoNumbersAndTheirScale) {
  for (const std::string_view chip : {"reference", "cpu"}) {
    SCOPED_TRACE(chip);
    const std::unique_ptr<Backend> backend = make_backend(chip, {.threads = 1});
    const auto pages = backend->make_kv_pages({1, 1, 1, 64, DType::kQ8_0});
    ASSERT_EQ(pages->page_bytes(), 2u * 2 * 34);
    std::vector<float> row(64);
    row[0] = 254, row[1] = -254, row[2] = 1, row[3] = 3, row[4] = 100;  // s = 2: 127 -127 0.5 1.5 50
    row[32] = 1e9f, row[33] = 65504 * 3;                                // s is the largest F16
    Floats k{{1, 1, 64}, row}, v{{1, 1, 64}};
    Ints slot{{1}, std::vector<int32_t>{0}};
    backend->kv_write({k, v, slot, pages.get()});
    std::vector<std::byte> bytes(pages->page_bytes());
    backend->export_kv_page(*pages, 0, bytes.data());
    std::vector<int> expected(bytes.size());
    expected[1] = 0x40, expected[2] = 127, expected[3] = 256 - 127, expected[5] = 2, expected[6] = 50;
    expected[34] = 0xff, expected[35] = 0x7b, expected[36] = 127, expected[37] = 3;
    for (size_t i = 0; i < bytes.size(); ++i) EXPECT_EQ(std::to_integer<int>(bytes[i]), expected[i]) << i;
  }
}

TEST_F(AttentionTest, Fp8KeepsARowsNumbersAndTheirScale) {
  struct Row {
    std::vector<float> x;
    float scale;
    std::vector<int> numbers;
  };
  const float inf = INFINITY, nan = NAN;
  const std::vector<Row> rows = {
      // 448, -448, 1, between 1 and 1.125, between 1.125 and 1.25, below half and half way above 2^-9, -0.
      {{896, -896, 2, 2.125f, 2.375f, 0x1p-9f, 3 * 0x1p-9f, -0.0f},
       2,
       {0x7e, 0xfe, 0x38, 0x38, 0x3a, 0, 2, 0x80}},
      {{897, 0, 112}, 4, {0x76, 0, 0x5e}},  // a power of two more: a fourth's nearest, 224, and 28
      {{-0x1p-100f, 0x1p-101f}, 0x1p-108f, {0xf8, 0x70}},
      {{0x1p-101f, -0x1p-140f}, 0, {0, 0x80}},
      {{inf, -inf, 0x1.fffffep127f, 0x1p119f, 1}, 0x1p119f, {0x7e, 0xfe, 0x7e, 0x38, 0}},
      {{1, nan}, nan, std::vector<int>(16, 0x7f)}};
  for (const std::string_view chip : {"reference", "cpu"}) {
    SCOPED_TRACE(chip);
    const std::unique_ptr<Backend> backend = make_backend(chip, {.threads = 1});
    const auto pages = backend->make_kv_pages({1, 3, 1, 16, DType::kF8_E4M3});
    ASSERT_EQ(pages->page_bytes(), 6u * 20);
    Floats k({3, 1, 16}), v({3, 1, 16});  // rows 0 to 2, and 3 to 5
    for (size_t i = 0; i < rows.size(); ++i)
      std::ranges::copy(rows[i].x, (i < 3 ? k : v).data() + i % 3 * 16);
    Ints slots({3}, {0, 1, 2});
    backend->kv_write({k, v, slots, pages.get()});
    std::vector<std::byte> bytes(pages->page_bytes());
    backend->export_kv_page(*pages, 0, bytes.data());
    for (size_t i = 0; i < rows.size(); ++i) {
      const std::byte* row = bytes.data() + (i % 3 * 2 + i / 3) * 20;
      float scale = 0;
      std::memcpy(&scale, row, sizeof scale);
      if (std::isnan(rows[i].scale)) {
        EXPECT_TRUE(std::isnan(scale));
      } else {
        EXPECT_EQ(scale, rows[i].scale) << i;
      }
      std::vector<int> numbers;
      for (int d = 0; d < 16; ++d) numbers.push_back(std::to_integer<int>(row[4 + d]));
      std::vector<int> expected = rows[i].numbers;
      expected.resize(16);
      EXPECT_EQ(numbers, expected) << i;
    }
  }
}

TEST_F(AttentionTest, Q8NeedsHeadsOfWholeBlocks) {
  EXPECT_QIAO_ERROR(
      chip_->make_kv_pages({1, 1, 1, 80, DType::kQ8_0}), kInvalidInput,
      "heads of 80 cannot be kept in Q8_0, whose rows are multiples of 32; use F16, BF16 or F32");
  EXPECT_QIAO_ERROR(chip_->make_kv_pages({1, 1, 1, 40, DType::kF8_E4M3}), kInvalidInput,
                    "heads of 40 cannot be kept in F8_E4M3, whose rows are multiples of 16");
  EXPECT_QIAO_ERROR(chip_->make_kv_pages({1, 1, 1, 256, DType::kQ4_K}), kInvalidInput, "Q4_K");
}

TEST_F(AttentionTest, CountsItsWork) {
  const auto fp8 = chip_->make_kv_pages({3, 2, 1, 16, DType::kF8_E4M3});
  AttentionPaged op = op_;
  op.pages = fp8.get();
  EXPECT_EQ(op.bytes(4), 4 * 2 * (16 + 4) + 2 * 32);
  EXPECT_EQ(op_.flops(7), 4 * 7 * 4);
  EXPECT_EQ(op_.bytes(4), 4 * 8 + 2 * 32);
}

TEST_F(AttentionTest, WriteRefuses) {
  EXPECT_EQ(refusal(write_), "");
  KvWrite op = write_;
  op.pages = nullptr;
  EXPECT_EQ(refusal(op), "kv_write: pages are absent");
  op = write_, op.k = reshaped(k_, {4, 2, 1});
  EXPECT_EQ(refusal(op), "kv_write: k is F32[4, 2, 1], expected F32[4, 1, 2]");
  op = write_, op.v.dtype = DType::kF16;
  EXPECT_EQ(refusal(op), "kv_write: v is F16[4, 1, 2], expected F32[4, 1, 2]");
  op = write_, op.slots = reshaped(slots_, {2, 2});
  EXPECT_EQ(refusal(op), "kv_write: slots is I32[2, 2], expected 1 dimensions");
}

TEST_F(AttentionTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  AttentionPaged op = op_;
  op.pages = nullptr;
  EXPECT_EQ(refusal(op), "attention_paged: pages are absent");
  op = op_, op.q = reshaped(q_, {2, 1, 4});
  EXPECT_EQ(refusal(op), "attention_paged: q is F32[2, 1, 4], expected F32[2, 1, 2]");
  op = op_, op.out = reshaped(out_, {4, 1, 2});
  EXPECT_EQ(refusal(op), "attention_paged: out is F32[4, 1, 2], expected F32[2, 2, 2]");
  op = op_, op.page_table = reshaped(table_, {2});
  EXPECT_EQ(refusal(op), "attention_paged: page_table is I32[2], expected 2 dimensions");
  op = op_, op.lengths = reshaped(starts_, {2});
  EXPECT_EQ(refusal(op), "attention_paged: lengths is I32[2], expected I32[1]");
  op = op_, op.query_starts = reshaped(starts_, {1});
  EXPECT_EQ(refusal(op), "attention_paged: query_starts is I32[1], expected I32[2]");
  op = op_, op.window = -1;
  EXPECT_EQ(refusal(op), "attention_paged: window is -1, expected 0 (unlimited) or more");
  op = op_, op.soft_cap = -1;
  EXPECT_EQ(refusal(op), "attention_paged: soft_cap is -1, expected 0 (none) or more");
  op = op_, op.scale = INFINITY;
  EXPECT_EQ(refusal(op), "attention_paged: scale is not finite");
  op = op_, op.compute = Compute::kQ8;
  EXPECT_EQ(refusal(op), "attention_paged: compute is Q8, expected F32 or BF16");
  op = op_, op.compute = Compute::kBF16, op.out = reshaped(q_, {2, 2, 2});
  EXPECT_EQ(refusal(op), "");
  op.out = op.out.slice(1, 1), op.q = op.q.slice(0, 1);
  EXPECT_EQ(refusal(op), "");
  Floats memory({10});
  op = op_, op.q = reshaped(memory, {2, 2, 2}), op.out = op.q, op.out.data = memory.data() + 2;
  EXPECT_EQ(refusal(op), "attention_paged: out F32[2, 2, 2] overlaps q F32[2, 2, 2] without being it");
}

TEST_F(AttentionTest, RefusesHeadsThatDoNotShareEvenly) {
  const auto pages = chip_->make_kv_pages({3, 2, 3, 2, DType::kF16});
  op_.pages = pages.get();
  EXPECT_EQ(refusal(op_), "attention_paged: q is F32[2, 2, 2], expected a multiple of the pages' 3 heads");
}

}  // namespace
}  // namespace qiao
