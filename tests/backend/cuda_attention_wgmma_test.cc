// Prefill's attention by wgmma on Hopper, on the stand-in, has the bits of mma.sync's kernel, which a device
// before Hopper runs, and decoding's: for every kind of pages, width of heads and rule of scores, for lengths
// that end inside tiles and chunks, and for sequences beside each other.
#include <cstring>
#include <random>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "backend/op_test.h"

namespace qiao {
namespace {

constexpr int64_t kWgmmaPage = 16;

struct WgmmaStep {
  std::vector<int32_t> queries, lengths;  // of each sequence
  int64_t heads = 4, kv_heads = 2, width = 64;
  DType dtype = DType::kBF16;
  int64_t window = 0;
  float soft_cap = 0;
  bool rising = false;  // scores grow along the keys, so that rows are scaled anew in every block
};

class CudaAttentionWgmmaTest : public ::testing::Test {
 protected:
  void TearDown() override { EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty()); }

  static std::unique_ptr<Backend> chip_of(int major, int multiprocessors = 3) {
    stand_in::Machine machine;
    machine.major = major, machine.multiprocessors = multiprocessors;
    stand_in::reset(machine);
    return make_cuda_backend({});
  }
  void fill(const Floats& values) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < values.tensor().elements(); ++i) values.data()[i] = normal(random_);
  }
  static int64_t sum(const std::vector<int32_t>& counts) {
    int64_t all = 0;
    for (const int32_t count : counts) all += count;
    return all;
  }

  static std::vector<float> paged(int major, const WgmmaStep& step, const Tensor& q, const Tensor& k,
                                  const Tensor& v) {
    const std::unique_ptr<Backend> chip = chip_of(major);
    const auto sequences = static_cast<int64_t>(step.queries.size());
    const int64_t tokens = sum(step.lengths);
    const int64_t each = (*std::max_element(step.lengths.begin(), step.lengths.end()) - 1) / kWgmmaPage + 1;
    Ints slots({tokens}), table({sequences, each}), lengths({sequences}, step.lengths);
    Ints starts({sequences + 1});
    int32_t token = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      const auto at = static_cast<size_t>(s);
      starts.data()[s + 1] = starts.data()[s] + step.queries[at];
      for (int64_t i = 0; i < each; ++i) {
        table.data()[s * each + i] = static_cast<int32_t>(sequences * each - 1 - s * each - i);
      }
      for (int32_t j = 0; j < step.lengths[at]; ++j, ++token) {
        const int32_t page = table.data()[s * each + j / kWgmmaPage];
        slots.data()[token] = page * static_cast<int32_t>(kWgmmaPage) + j % static_cast<int32_t>(kWgmmaPage);
      }
    }
    const auto pages =
        chip->make_kv_pages({sequences * each, kWgmmaPage, step.kv_heads, step.width, step.dtype});
    chip->kv_write({k, v, slots, pages.get()});
    Floats out({q.shape[0], step.heads, step.width});
    AttentionPaged op;
    op.q = q, op.pages = pages.get(), op.page_table = table, op.lengths = lengths, op.query_starts = starts;
    op.out = out, op.window = step.window, op.scale = 0.25f, op.soft_cap = step.soft_cap;
    op.compute = Compute::kBF16;
    const Buffer workspace = chip->allocate(chip->workspace_bytes(op));
    op.workspace = Tensor(workspace.data(), DType::kU8, {static_cast<int64_t>(workspace.bytes())});
    chip->attention_paged(op);
    chip->synchronize();
    return out.list();
  }

  void expect_same(const WgmmaStep& step) {
    Floats q({sum(step.queries), step.heads, step.width});
    Floats k({sum(step.lengths), step.kv_heads, step.width}),
        v({sum(step.lengths), step.kv_heads, step.width});
    for (const Floats* values : {&q, &k, &v}) fill(*values);
    if (step.rising) {
      const int64_t row = step.kv_heads * step.width;
      for (int64_t i = 0; i < q.tensor().elements(); ++i) q.data()[i] = std::abs(q.data()[i]);
      for (int64_t i = 0; i < k.tensor().elements(); ++i) k.data()[i] += static_cast<float>(i / row) * 0.05f;
    }
    const std::vector<float> before = paged(8, step, q, k, v), hopper = paged(9, step, q, k, v);
    EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty());
    EXPECT_TRUE(std::all_of(before.begin(), before.end(), [](float x) { return std::isfinite(x); }));
    EXPECT_EQ(std::memcmp(before.data(), hopper.data(), before.size() * sizeof(float)), 0)
        << traits(step.dtype).name << " " << step.width << " window " << step.window << " "
        << step.queries[0];
    if (step.queries.size() != 1) return;
    WgmmaStep decode = step;  // the last query alone
    decode.queries = {1};
    const std::vector<float> alone = paged(9, decode, q.tensor().slice(q.tensor().shape[0] - 1, 1), k, v);
    EXPECT_TRUE(std::equal(alone.rbegin(), alone.rend(), hopper.rbegin()))
        << traits(step.dtype).name << " " << step.width << " window " << step.window << " "
        << step.lengths[0];
  }

  std::mt19937 random_{5};
};

TEST_F(CudaAttentionWgmmaTest, PagesOfAllKindsAndWidths) {
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF8_E4M3}) {
    for (const int64_t width : {16, 64, 80, 128}) {
      WgmmaStep step{{150}, {333}};
      step.dtype = dtype, step.width = width;
      expect_same(step);
    }
  }
}

// 128 rows are 128 queries of one head, 64 of two, 16 of eight.
TEST_F(CudaAttentionWgmmaTest, RowsAreQueriesTimesHeads) {
  for (const int64_t share : {1, 3, 8}) {
    WgmmaStep step{{130}, {130}};
    step.kv_heads = 1, step.heads = share;
    expect_same(step);
  }
}

TEST_F(CudaAttentionWgmmaTest, LengthsEndInsideTilesAndChunks) {
  for (const int32_t length : {9, 32, 33, 64, 65, 255, 256, 257, 320, 513}) {
    WgmmaStep step{{9}, {length}};
    expect_same(step);
    step.queries = {std::min(length, 100)}, step.window = 70;
    expect_same(step);
  }
}

TEST_F(CudaAttentionWgmmaTest, WindowsAndSoftCaps) {
  for (const int64_t window : {1, 31, 64, 100, 257, 600}) {
    WgmmaStep step{{300}, {640}};
    step.heads = step.kv_heads = 1, step.window = window;
    expect_same(step);
    step.soft_cap = 3, step.heads = 2;
    expect_same(step);
  }
}

TEST_F(CudaAttentionWgmmaTest, RowsThatAreScaledAnewInEveryBlock) {
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF8_E4M3}) {
    WgmmaStep step{{200}, {600}};
    step.rising = true, step.dtype = dtype, step.width = 128;
    expect_same(step);
  }
}

// Items of several sequences that a block takes in turn, beside sequences that decode or have no queries.
TEST_F(CudaAttentionWgmmaTest, SequencesBesideEachOther) {
  WgmmaStep step{{40, 1, 0, 200, 3, 17, 130, 1}, {40, 300, 20, 700, 270, 18, 131, 5}};
  expect_same(step);
  step.dtype = DType::kF8_E4M3, step.width = 128, step.window = 90;
  expect_same(step);
}

// Items of one tile each, more than are told of ahead.
TEST_F(CudaAttentionWgmmaTest, ManyShortSequences) {
  for (const DType dtype : {DType::kBF16, DType::kF8_E4M3}) {
    WgmmaStep step{std::vector<int32_t>(40, 9), std::vector<int32_t>(40, 11)};
    step.dtype = dtype;
    expect_same(step);
  }
}

// Packed rows, with the logarithms that the way back needs; all keys, or with positions' biases.
TEST_F(CudaAttentionWgmmaTest, PackedRowsOfTraining) {
  constexpr int64_t kTokens = 330, kReach = 230;
  for (const int64_t width : {64, 128}) {
    Floats q({kTokens, 4, width}), k({kTokens, 2, width}), v({kTokens, 2, width}), bias({4, 2 * kReach - 1});
    for (const Floats* values : {&q, &k, &v, &bias}) fill(*values);
    Ints starts({4}, {0, 100, 101, kTokens});
    for (const bool causal : {true, false}) {
      for (const bool biased : {false, true}) {
        std::vector<std::vector<float>> results;
        for (const int major : {8, 9}) {
          const std::unique_ptr<Backend> chip = chip_of(major, 2);
          Floats out({kTokens, 4, width}), sums({kTokens, 4});
          AttentionVarlen op;
          op.q = q, op.k = k, op.v = v, op.starts = starts, op.out = out, op.log_sum_exp = sums;
          op.causal = causal, op.scale = 0.2f, op.compute = Compute::kBF16;
          if (biased) op.bias = bias;
          const Buffer workspace = chip->allocate(chip->workspace_bytes(op));
          op.workspace = Tensor(workspace.data(), DType::kU8, {static_cast<int64_t>(workspace.bytes())});
          chip->attention_varlen(op);
          chip->synchronize();
          EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty());
          results.push_back(out.list());
          results.push_back(sums.list());
        }
        EXPECT_EQ(results[0], results[2]) << width << " " << causal << " " << biased;
        EXPECT_EQ(results[1], results[3]) << width << " " << causal << " " << biased;
      }
    }
  }
}

}  // namespace
}  // namespace qiao
