#include "backend/ops/rope_kv_write.h"

#include <cmath>
#include <cstring>

#include "backend/op_test.h"

namespace qiao {
namespace {

// Two tokens, two heads of queries and one of keys and values, of four elements.
class RopeKvWriteTest : public ::testing::Test {
 protected:
  RopeKvWriteTest() {
    frequencies_.data()[0] = static_cast<float>(M_PI / 2);
    op_.q = q_, op_.k = k_, op_.v = v_;
    op_.positions = positions_, op_.inverse_frequencies = frequencies_;
    op_.slots = slots_, op_.pages = pages_.get();
  }
  // A slot's key and value.
  std::vector<float> kept(int64_t slot) {
    std::vector<float> page(pages_->page_bytes() / sizeof(float));
    chip_->export_kv_page(*pages_, slot / 2, reinterpret_cast<std::byte*>(page.data()));
    return {page.begin() + slot % 2 * 8, page.begin() + slot % 2 * 8 + 8};
  }

  std::unique_ptr<Backend> chip_ = reference_chip();
  std::unique_ptr<KvPages> pages_ = chip_->make_kv_pages({2, 2, 1, 4, DType::kF32});
  Floats q_{{2, 2, 4}, {1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 3, 0, 4, 0, 0, 0}};
  Floats k_{{2, 1, 4}, {3, 3, 3, 3, 0, 8, 0, 0}};
  Floats v_{{2, 1, 4}, {5, 6, 7, 8, 9, 10, 11, 12}};
  Floats gamma_{{4}, {1, 1, 2, 2}};
  Ints positions_{{2}, std::vector<int32_t>{0, 1}};
  Floats frequencies_{{1}};
  Ints slots_{{2}, std::vector<int32_t>{3, 0}};
  RopeKvWrite op_;
};

void expect_near(const std::vector<float>& actual, const std::vector<float>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-5) << i;
}

TEST_F(RopeKvWriteTest, NormsTurnsAndKeeps) {
  op_.q_norm = {.present = true, .gamma = gamma_}, op_.k_norm.present = true;
  chip_->rope_kv_write(op_);
  // Token 1's first pair turns by a quarter: (a, b) becomes (-b, a).
  expect_near(q_.list(), {1, 1, 2, 2, 1, 1, 2, 2, 0, 0, 4, 0, 0, 2, 0, 0});
  expect_near(kept(3), {1, 1, 1, 1, 5, 6, 7, 8});
  expect_near(kept(0), {-2, 0, 0, 0, 9, 10, 11, 12});
}

TEST_F(RopeKvWriteTest, NormsMayComeAfter) {
  op_.q_norm = {.present = true, .gamma = gamma_, .gamma_offset = 1}, op_.norms_after = true;
  op_.layout = Rope::Layout::kInterleaved, op_.scale = 2;
  chip_->rope_kv_write(op_);
  expect_near(std::vector<float>(q_.data() + 8, q_.data() + 16), {0, 0, 6, 0, 0, 4, 0, 0});
  expect_near(kept(0), {-16, 0, 0, 0, 9, 10, 11, 12});
}

TEST_F(RopeKvWriteTest, WithoutFrequenciesNothingTurns) {
  op_.positions = op_.inverse_frequencies = {};
  const std::vector<float> before = q_.list();
  chip_->rope_kv_write(op_);
  EXPECT_EQ(q_.list(), before);
  EXPECT_EQ(kept(0), (std::vector<float>{0, 8, 0, 0, 9, 10, 11, 12}));
}

class OneOp final : public OpWatch {
 public:
  void on_op(std::string_view op, double, double flops, double bytes) override {
    names.emplace_back(op), all_flops += flops, all_bytes += bytes;
  }
  std::vector<std::string> names;
  double all_flops = 0, all_bytes = 0;
};

TEST_F(RopeKvWriteTest, IsToldAsOneOp) {
  OneOp watch;
  op_.q_norm.present = true;
  chip_->set_watch(&watch);
  chip_->rope_kv_write(op_);
  chip_->set_watch(nullptr);
  EXPECT_EQ(watch.names, std::vector<std::string>{"rope_kv_write"});
  // q's 16 elements normed, a pair of each of six heads turned.
  EXPECT_EQ(watch.all_flops, 4 * 16 + 6 * 6);
  // q twice, k and v, positions, slots, the frequency, and as much as k and v in the pages.
  EXPECT_EQ(watch.all_bytes, 2 * 64 + 2 * 32 + 8 + 8 + 4 + 2 * 32);
}

TEST_F(RopeKvWriteTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  RopeKvWrite op = op_;
  op.pages = nullptr;
  EXPECT_EQ(refusal(op), "rope_kv_write: pages are absent");
  op = op_, op.q = reshaped(q_, {4, 4});
  EXPECT_EQ(refusal(op), "rope_kv_write: q is F32[4, 4], expected 3 dimensions");
  op = op_, op.q = reshaped(q_, {2, 4, 2});
  EXPECT_EQ(refusal(op), "rope_kv_write: q is F32[2, 4, 2], expected F32[2, 4, 4]");
  op = op_, op.k = reshaped(k_, {1, 2, 4});
  EXPECT_EQ(refusal(op), "rope_kv_write: k is F32[1, 2, 4], expected F32[2, 1, 4]");
  op = op_, op.v = reshaped(v_, {2, 2, 2});
  EXPECT_EQ(refusal(op), "rope_kv_write: v is F32[2, 2, 2], expected F32[2, 1, 4]");
  op = op_, op.slots = op.slots.slice(0, 1);
  EXPECT_EQ(refusal(op), "rope_kv_write: slots is I32[1], expected I32[2]");
  op = op_, op.positions.dtype = DType::kF32;
  EXPECT_EQ(refusal(op), "rope_kv_write: positions is F32[2], expected I32[2]");
  op = op_, op.positions = {};
  EXPECT_EQ(refusal(op),
            "rope_kv_write: one of positions and inverse_frequencies is absent, expected both or neither");
  Floats three({3});
  op = op_, op.inverse_frequencies = three;
  EXPECT_EQ(refusal(op),
            "rope_kv_write: inverse_frequencies is F32[3], expected from 1 to 2 for q F32[2, 2, 4]");
  op = op_, op.scale = INFINITY;
  EXPECT_EQ(refusal(op), "rope_kv_write: scale is not finite");
  for (auto norm : {&RopeKvWrite::q_norm, &RopeKvWrite::k_norm}) {
    const std::string name = norm == &RopeKvWrite::q_norm ? "q_norm" : "k_norm";
    op = op_, op.*norm = {.present = true, .gamma = three};
    EXPECT_EQ(refusal(op), "rope_kv_write: " + name + ".gamma is F32[3], expected F32[4]");
    op = op_, op.*norm = {.present = true, .epsilon = 0};
    EXPECT_EQ(refusal(op), "rope_kv_write: epsilon is 0, expected it above 0");
    op = op_, op.*norm = {.present = true, .gamma_offset = NAN};
    EXPECT_EQ(refusal(op), "rope_kv_write: gamma_offset is not finite");
    op = op_, op.*norm = {.present = true, .gamma = reshaped(q_, {4})};
    EXPECT_EQ(refusal(op), "rope_kv_write: q F32[2, 2, 4] overlaps " + name + ".gamma F32[4]");
  }
  op = op_, op.v = op.k;
  EXPECT_EQ(refusal(op), "rope_kv_write: k F32[2, 1, 4] overlaps v F32[2, 1, 4]");
  op = op_, op.k = reshaped(q_, {2, 1, 4});
  EXPECT_EQ(refusal(op), "rope_kv_write: q F32[2, 2, 4] overlaps k F32[2, 1, 4]");
  op = op_, op.inverse_frequencies = reshaped(v_, {2});
  EXPECT_EQ(refusal(op), "rope_kv_write: v F32[2, 1, 4] overlaps inverse_frequencies F32[2]");
  op = op_, op.slots = Tensor(k_.data(), DType::kI32, {2});
  EXPECT_EQ(refusal(op), "rope_kv_write: k F32[2, 1, 4] overlaps slots I32[2]");
}

}  // namespace
}  // namespace qiao
