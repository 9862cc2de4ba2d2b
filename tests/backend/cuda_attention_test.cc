// attention_paged of the CUDA chip, beyond what quick conformance asks: who takes which sequence and chunk
// never shows in the bits, and contexts of several chunks keep the contract's bound.
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "backend/op_test.h"
#include "backend/reference/exact.h"

namespace qiao {
namespace {

// Sequences of these lengths, their pages (of 16 tokens where nothing is said) in descending order, on a chip
// and on the law.
class Cache {
 public:
  Cache(Backend& chip, const KvPagesSpec& heads, const std::vector<int32_t>& lengths)
      : chip_(chip),
        lengths_(lengths),
        longest_(*std::max_element(lengths.begin(), lengths.end())),
        page_tokens_(heads.page_tokens == 0 ? 16 : heads.page_tokens),
        table_({static_cast<int64_t>(lengths.size()), pages_of(longest_)}) {
    KvPagesSpec spec = heads;
    spec.page_tokens = page_tokens_;
    for (const int32_t length : lengths) spec.pages += pages_of(length);
    pages_ = chip.make_kv_pages(spec);
    law_pages_ = law_->make_kv_pages(spec);
    auto next = static_cast<int32_t>(spec.pages);
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (int64_t page = 0; page < pages_of(lengths[s]); ++page) {
        table_.data()[static_cast<int64_t>(s) * table_.tensor().shape[1] + page] = --next;
      }
      write(static_cast<int64_t>(s), spec);
    }
  }

  // The outputs of the last queries[s] queries of each sequence; with `law` within its bound of them.
  std::vector<float> attend(const std::vector<int32_t>& queries, const Tensor& q, int64_t window,
                            bool law = false, Compute compute = Compute::kF32) {
    const auto sequences = static_cast<int64_t>(queries.size());
    Ints starts({sequences + 1}), lengths({sequences}, lengths_);
    for (int64_t s = 0; s < sequences; ++s) {
      starts.data()[s + 1] = starts.data()[s] + queries[static_cast<size_t>(s)];
    }
    Floats out({q.shape[0], q.shape[1], q.shape[2]});
    AttentionPaged op;
    op.q = q, op.pages = pages_.get(), op.page_table = table_, op.lengths = lengths;
    op.query_starts = starts, op.out = out, op.window = window;
    op.scale = 0.3f;
    op.compute = compute;
    const Buffer workspace = chip_.allocate(chip_.workspace_bytes(op));
    op.workspace = Tensor(workspace.data(), DType::kU8, {static_cast<int64_t>(workspace.bytes())});
    chip_.attention_paged(op);
    chip_.synchronize();
    if (law) hold_bound(op, out.list());
    return out.list();
  }

 private:
  int64_t pages_of(int64_t length) const { return (length + page_tokens_ - 1) / page_tokens_; }

  void write(int64_t s, const KvPagesSpec& spec) {
    const int64_t length = lengths_[static_cast<size_t>(s)];
    Floats k({length, spec.kv_heads, spec.head_dim}), v({length, spec.kv_heads, spec.head_dim});
    std::mt19937_64 random(static_cast<uint64_t>(length));  // the same sequence wherever it stands
    std::normal_distribution<float> normal;
    for (Floats* tensor : {&k, &v}) {
      for (int64_t i = 0; i < tensor->tensor().elements(); ++i) tensor->data()[i] = normal(random);
    }
    Ints slots({length});
    for (int64_t j = 0; j < length; ++j) {
      const int32_t page = table_.data()[s * table_.tensor().shape[1] + j / page_tokens_];
      slots.data()[j] = static_cast<int32_t>(page * page_tokens_ + j % page_tokens_);
    }
    chip_.kv_write({k, v, slots, pages_.get()});
    chip_.synchronize();
    law_->kv_write({k, v, slots, law_pages_.get()});
  }

  // ops/attention.h's.
  void hold_bound(AttentionPaged op, const std::vector<float>& out) const {
    const auto gamma = [](double n) { return n * 0x1p-24 / (1 - n * 0x1p-24); };
    const DType dtype = law_pages_->spec().dtype;
    const bool f16 = op.compute == Compute::kBF16 && dtype == DType::kF16;
    const bool bf16 = op.compute == Compute::kBF16 && (dtype == DType::kBF16 || dtype == DType::kF8_E4M3);
    const double rounding = f16 ? 0x1p-11 : bf16 ? 0x1p-8 : 0, tiny = f16 ? 0x1p-24 : 0;
    op.pages = law_pages_.get();
    const reference::AttentionTerms terms = reference::exact_attention(op);
    const int64_t heads = op.q.shape[1], width = op.q.shape[2];
    for (size_t i = 0; i < out.size(); ++i) {
      const size_t row = i / static_cast<size_t>(width);
      const auto keys = static_cast<double>(terms.keys[row / static_cast<size_t>(heads)]);
      const double score =
          ((1 + rounding) * (1 + gamma(static_cast<double>(width) + 16)) - 1) * terms.score[row] +
          tiny * terms.spread[row];
      const double relative = std::exp(2 * score) * (1 + rounding) * (1 + gamma(2 * keys + 16)) - 1;
      const double bound = relative * terms.magnitude[i] + tiny * terms.values[i] + 0x1p-126;
      ASSERT_LE(std::abs(static_cast<double>(out[i]) - terms.out[i]), bound) << "row " << row;
    }
  }

  Backend& chip_;
  std::unique_ptr<Backend> law_ = reference_chip();
  std::vector<int32_t> lengths_;
  int32_t longest_;
  int64_t page_tokens_;
  Ints table_;
  std::unique_ptr<KvPages> pages_, law_pages_;
};

class CudaAttentionTest : public ::testing::Test {
 protected:
  CudaAttentionTest() { stand_in::reset(); }
  ~CudaAttentionTest() override { EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty()); }

  static void fill(const Floats& q) {
    std::mt19937_64 random(7);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < q.tensor().elements(); ++i) q.data()[i] = normal(random);
  }
  // Rows [row, row + count) of `all`, of `width` floats each.
  static std::vector<float> rows_of(const std::vector<float>& all, int64_t row, int64_t count,
                                    int64_t width) {
    return {all.begin() + row * width, all.begin() + (row + count) * width};
  }
};

struct Kind {
  DType dtype;
  Compute compute;
};

class CudaAttentionPagesTest : public CudaAttentionTest, public ::testing::WithParamInterface<Kind> {};

// The last 24 queries of 700 tokens in one go, which walk three chunks a tile; some alone, whose chunks are
// computed apart; and beside others, in batches that split them and in one that does not.
TEST_P(CudaAttentionPagesTest, ChunksComputedApartAreTheSameBits) {
  const std::unique_ptr<Backend> owner = make_cuda_backend({});
  Backend& chip = *owner;
  const auto [dtype, compute] = GetParam();
  const KvPagesSpec heads{0, 0, 2, 32, dtype};
  constexpr int32_t kLength = 700, kQueries = 24;
  constexpr int64_t kWidth = 6 * 32;
  for (const int64_t window : {0, 300}) {
    Floats q({kQueries, 6, 32});
    fill(q);
    Cache whole(chip, heads, {kLength});
    const std::vector<float> all = whole.attend({kQueries}, q, window, true, compute);
    EXPECT_EQ(whole.attend({1}, q.tensor().slice(kQueries - 1, 1), window, false, compute),
              rows_of(all, kQueries - 1, 1, kWidth));
    EXPECT_EQ(whole.attend({5}, q.tensor().slice(kQueries - 5, 5), window, false, compute),
              rows_of(all, kQueries - 5, 5, kWidth));

    Cache mixed(chip, heads, {40, kLength, 17});
    Floats step({43, 6, 32});
    fill(step);
    std::memcpy(step.data() + 40 * kWidth, q.data() + (kQueries - 2) * kWidth, 2 * kWidth * sizeof(float));
    EXPECT_EQ(rows_of(mixed.attend({40, 2, 1}, step, window, true, compute), 40, 2, kWidth),
              rows_of(all, kQueries - 2, 2, kWidth));

    Cache idle(chip, heads, {33, kLength, 17});
    EXPECT_EQ(idle.attend({0, 3, 0}, q.tensor().slice(kQueries - 3, 3), window, false, compute),
              rows_of(all, kQueries - 3, 3, kWidth));
  }
}

// How many multiprocessors share the items, how many parts of keys and values a block has room for, which
// warp comes first, and how many tokens a page has, shows in no bit: sequences shorter than a block of keys
// and longer than several chunks, with none, one and several queries; windows that leave chunks out, or all
// but the last part of one.
TEST_P(CudaAttentionPagesTest, BlocksAndPartsShowInNoBit) {
  const auto [dtype, compute] = GetParam();
  const std::vector<int32_t> lengths = {1, 700, 257, 31, 256, 520, 5};
  struct Case {
    int64_t width, window;
    std::vector<int32_t> queries;
  };
  struct Device {
    int multiprocessors, block_shared_bytes;  // the least: of RoundedWarp's heads of 128
    uint64_t seed;
    int64_t page_tokens;
  };
  for (const Case& c : {Case{128, 0, {1, 1, 1, 1, 1, 1, 1}}, Case{64, 40, {0, 2, 0, 5, 1, 0, 1}}}) {
    Floats q({std::accumulate(c.queries.begin(), c.queries.end(), int64_t{0}), 6, c.width});
    fill(q);
    std::vector<float> first;
    for (const Device& device :
         {Device{40, 227 * 1024, 1, 16}, Device{1, 227 * 1024, 2, 32}, Device{3, 136 * 1024, 0, 5}}) {
      stand_in::Machine machine;
      machine.multiprocessors = device.multiprocessors, machine.schedule_seed = device.seed;
      machine.block_shared_bytes = device.block_shared_bytes;
      stand_in::reset(machine);
      const std::unique_ptr<Backend> chip = make_cuda_backend({});
      const std::vector<float> out = Cache(*chip, {0, device.page_tokens, 2, c.width, dtype}, lengths)
                                         .attend(c.queries, q, c.window, first.empty(), compute);
      ASSERT_THAT(stand_in::faults(), ::testing::IsEmpty());
      if (first.empty()) first = out;
      ASSERT_EQ(out, first) << c.width << ", " << device.multiprocessors;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, CudaAttentionPagesTest,
    ::testing::Values(Kind{DType::kF32, Compute::kF32}, Kind{DType::kF16, Compute::kF32},
                      Kind{DType::kBF16, Compute::kF32}, Kind{DType::kQ8_0, Compute::kF32},
                      Kind{DType::kF16, Compute::kBF16}, Kind{DType::kBF16, Compute::kBF16},
                      Kind{DType::kQ8_0, Compute::kBF16}, Kind{DType::kF8_E4M3, Compute::kF32},
                      Kind{DType::kF8_E4M3, Compute::kBF16}),
    [](const auto& info) {
      return std::string(traits(info.param.dtype).name) +
             (info.param.compute == Compute::kBF16 ? "Rounded" : "");
    });

// Numbers that E4M3 has, times powers of two, in FP8 and in BF16: in kBF16 they are the same operands of the
// same products. Scores are sums of small whole numbers, and so alike in any order.
TEST_F(CudaAttentionTest, PagesOfFp8AreThoseOfBf16WithTheSameNumbers) {
  const std::unique_ptr<Backend> chip = make_cuda_backend({});
  constexpr int64_t kLength = 300, kPage = 32, kPages = 10, kQueries = 40;
  for (const int64_t width : {64, 80, 128}) {
    Floats k({kLength, 1, width}), v({kLength, 1, width}), q({kQueries, 3, width});
    std::mt19937_64 random(static_cast<uint64_t>(width));
    const auto below = [&](uint64_t count) { return static_cast<float>(random() % count); };
    for (int64_t i = 0; i < kQueries * 3 * width; ++i) q.data()[i] = below(5) - 2;
    for (int64_t t = 0; t < kLength; ++t) {
      // A row of values is anywhere between 2^-105 and 2^105, so that neither product under- or overflows.
      const float size = std::ldexp(1.0f, static_cast<int>(random() % 211) - 105);
      for (int64_t d = 0; d < width; ++d) {
        k.data()[t * width + d] = below(9) - 4;
        v.data()[t * width + d] = std::ldexp(below(16) - 8, static_cast<int>(random() % 14) - 9) * size;
      }
      v.data()[t * width] = 256 * size;  // so the least numbers are E4M3's least, below the normal ones
    }
    Ints slots({kLength}), table({1, kPages}), lengths({1}, {kLength});
    for (int32_t i = 0; i < kLength; ++i) slots.data()[i] = i;
    for (int32_t i = 0; i < kPages; ++i) table.data()[i] = i;
    for (const int32_t queries : {1, 40}) {  // in chunks, and in tiles
      Ints starts({2}, {0, queries});
      std::vector<std::vector<float>> out;
      for (const DType dtype : {DType::kF8_E4M3, DType::kBF16}) {
        const auto pages = chip->make_kv_pages({kPages, kPage, 1, width, dtype});
        chip->kv_write({k, v, slots, pages.get()});
        Floats result({queries, 3, width});
        AttentionPaged op;
        op.q = q.tensor().slice(0, queries), op.pages = pages.get(), op.page_table = table;
        op.lengths = lengths, op.query_starts = starts, op.out = result;
        op.scale = 0.125f, op.compute = Compute::kBF16;
        const Buffer workspace = chip->allocate(chip->workspace_bytes(op));
        op.workspace = Tensor(workspace.data(), DType::kU8, {static_cast<int64_t>(workspace.bytes())});
        chip->attention_paged(op);
        chip->synchronize();
        out.push_back(result.list());
      }
      EXPECT_EQ(out[0], out[1]) << width << ", " << queries;
    }
  }
}

// Rows that F16 would not hold as they are, beside small ones, through heads of 128 and several tiles of
// rows.
TEST_F(CudaAttentionTest, RowsOfAnySizeAreRoundedByTheirOwn) {
  const std::unique_ptr<Backend> chip = make_cuda_backend({});
  const KvPagesSpec heads{0, 0, 1, 128, DType::kF16};
  constexpr int32_t kLength = 300, kQueries = 70;
  constexpr int64_t kHeads = 3, kWidth = kHeads * 128;
  Floats q({kQueries, kHeads, 128});
  fill(q);
  for (int64_t row = 0; row < kQueries * kHeads; ++row) {
    const float size = row % 5 == 0 ? 0x1p-30f : row % 5 == 1 ? 1e-3f : 1;
    for (int64_t d = 0; d < 128; ++d) q.data()[row * 128 + d] *= d == 7 ? size * 0x1p-10f : size;
  }
  for (int64_t d = 0; d < 128; ++d) q.data()[d] *= 0x1p60f;  // 2^30: its largest score alone counts
  Cache cache(*chip, heads, {kLength});
  const std::vector<float> all = cache.attend({kQueries}, q, 0, true, Compute::kBF16);
  EXPECT_TRUE(std::all_of(all.begin(), all.end(), [](float x) { return std::isfinite(x); }));
  EXPECT_EQ(cache.attend({1}, q.tensor().slice(kQueries - 1, 1), 0, true, Compute::kBF16),
            rows_of(all, kQueries - 1, 1, kWidth));
}

// More sequences than a warp looks through at once, with none, one or many queries.
TEST_F(CudaAttentionTest, ManySequencesFindTheirTiles) {
  const std::unique_ptr<Backend> chip = make_cuda_backend({});
  const KvPagesSpec heads{0, 0, 1, 8, DType::kF16};
  std::vector<int32_t> lengths, queries;
  int32_t tokens = 0;
  for (int32_t s = 0; s < 75; ++s) {
    lengths.push_back(20 + s);
    queries.push_back(s % 3 == 0 ? 0 : s % 3 == 1 ? 1 : 9 + s % 7);
    tokens += queries.back();
  }
  Floats q({tokens, 2, 8});
  fill(q);
  const std::vector<float> all = Cache(*chip, heads, lengths).attend(queries, q, 0, true);
  int32_t row = 0;
  for (size_t s = 0; s < lengths.size(); row += queries[s], ++s) {
    if (s % 10 > 2 || queries[s] == 0) continue;
    EXPECT_EQ(Cache(*chip, heads, {lengths[s]}).attend({queries[s]}, q.tensor().slice(row, queries[s]), 0),
              rows_of(all, row, queries[s], 2 * 8));
  }
}

// One query of very many heads: tile after tile of one token; and where a batch is so large that the
// workspace would not hold all chunks, sequences are walked whole.
TEST_F(CudaAttentionTest, WhatTheWorkspaceDoesNotHoldIsWalkedWhole) {
  const std::unique_ptr<Backend> chip = make_cuda_backend({});
  const KvPagesSpec heads{0, 0, 1, 256, DType::kBF16};
  constexpr int32_t kLength = 1300, kSequences = 400;  // six chunks, of which four have room
  Floats q({1, 80, 256});
  fill(q);
  const std::vector<float> alone = Cache(*chip, heads, {kLength}).attend({1}, q, 0);
  std::vector<int32_t> lengths(kSequences, 1), queries(kSequences, 0);
  lengths[100] = kLength;
  queries[100] = 1;
  EXPECT_EQ(Cache(*chip, heads, lengths).attend(queries, q, 0), alone);
}

// attention_varlen's results and logarithms of sums, causal, of sequences that begin at `starts`.
struct Packed {
  std::vector<float> out, log_sum_exp;
};
Packed attend_packed(Backend& chip, const Tensor& q, const Tensor& k, const Tensor& v, const Ints& starts,
                     const AttentionPaged& rule) {
  Floats out({q.shape[0], q.shape[1], q.shape[2]}), sums({q.shape[0], q.shape[1]});
  AttentionVarlen op;
  op.q = q, op.k = k, op.v = v, op.starts = starts, op.out = out, op.log_sum_exp = sums;
  op.causal = true, op.window = rule.window, op.scale = rule.scale, op.soft_cap = rule.soft_cap;
  op.compute = rule.compute;
  const Buffer workspace = chip.allocate(chip.workspace_bytes(op));
  op.workspace = Tensor(workspace.data(), DType::kU8, {static_cast<int64_t>(workspace.bytes())});
  chip.attention_varlen(op);
  chip.synchronize();
  return {out.list(), sums.list()};
}

// In kBF16 packed rows are rounded as kv_write rounds them: the bits of attention_paged in kBF16 over pages
// of BF16, of one product of 16 bits for each one (up to 128) and of TF32, through several chunks; alone and
// beside others. Logarithms are those of the weights' sums.
TEST_F(CudaAttentionTest, PackedRowsInBF16AreThoseOfPagesOfBF16) {
  const std::unique_ptr<Backend> chip = make_cuda_backend({});
  constexpr int32_t kLength = 530, kBefore = 19, kAfter = 40, kTokens = kBefore + kLength + kAfter;
  constexpr int32_t kPage = 16, kPages = 34;
  struct Case {
    int64_t width, window;
    float soft_cap;
  };
  for (const Case& c : {Case{33, 0, 0}, Case{64, 300, 0}, Case{128, 0, 5}, Case{160, 100, 0}}) {
    Floats q({kTokens, 2, c.width}), k({kTokens, 1, c.width}), v({kTokens, 1, c.width});
    for (const Floats* tensor : {&q, &k, &v}) fill(*tensor);
    AttentionPaged op;
    op.window = c.window, op.scale = 0.2f, op.soft_cap = c.soft_cap, op.compute = Compute::kBF16;
    Ints all({4}, {0, kBefore, kBefore + kLength, kTokens}), own({2}, {0, kLength});
    const auto mine = [&](const Floats& of) { return of.tensor().slice(kBefore, kLength); };
    const Packed packed = attend_packed(*chip, q, k, v, all, op);
    const Packed alone = attend_packed(*chip, mine(q), mine(k), mine(v), own, op);
    EXPECT_EQ(rows_of(packed.out, kBefore, kLength, 2 * c.width), alone.out) << c.width;
    EXPECT_EQ(rows_of(packed.log_sum_exp, kBefore, kLength, 2), alone.log_sum_exp) << c.width;

    Ints slots({kLength}), table({1, kPages}), length({1}, {kLength});
    for (int32_t i = 0; i < kLength; ++i) slots.data()[i] = i;
    for (int32_t i = 0; i < kPages; ++i) table.data()[i] = i;
    const auto pages = chip->make_kv_pages({kPages, kPage, 1, c.width, DType::kBF16});
    chip->kv_write({mine(k), mine(v), slots, pages.get()});
    Floats out({kLength, 2, c.width});
    op.q = mine(q), op.out = out, op.pages = pages.get(), op.page_table = table, op.lengths = length;
    op.query_starts = own;
    const Buffer workspace = chip->allocate(chip->workspace_bytes(op));
    op.workspace = Tensor(workspace.data(), DType::kU8, {static_cast<int64_t>(workspace.bytes())});
    chip->attention_paged(op);
    chip->synchronize();
    EXPECT_EQ(out.list(), alone.out) << c.width;

    op.compute = Compute::kF32;
    const Packed exact = attend_packed(*chip, mine(q), mine(k), mine(v), own, op);
    EXPECT_NE(exact.out, alone.out) << c.width;  // so something is rounded
    for (size_t i = 0; i < exact.log_sum_exp.size(); ++i) {
      ASSERT_NEAR(alone.log_sum_exp[i], exact.log_sum_exp[i], 0.2) << c.width;
    }
  }
}

TEST_F(CudaAttentionTest, HeadsThatAreTooWideAreRefused) {
  const std::unique_ptr<Backend> chip = make_cuda_backend({});
  try {
    chip->make_kv_pages({1, 16, 1, 288, DType::kF16});
    FAIL() << "expected a refusal";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUnsupported);
    EXPECT_STREQ(e.what(), "make_kv_pages: heads are of 288, chip cuda takes up to 256");
  }
}

}  // namespace
}  // namespace qiao
