#include "backend/ops/vector_search.h"

#include "backend/op_test.h"
#include "backend/row_squares.h"

namespace qiao {
namespace {

class VectorSearchTest : public ::testing::Test {
 protected:
  VectorSearchTest() {
    op_.queries = queries_, op_.table = table_.get(), op_.scores = scores_, op_.ids = ids_;
  }
  VectorSearch by_distance() const {
    VectorSearch op = op_;
    op.metric = Metric::kL2, op.squares = Tensor(squares_.data(), DType::kF32, {4});
    return op;
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  std::unique_ptr<Weight> table_ = weight_of(*chip_, 4, 2, {1, 0, 3, 4, 0, 1, 1, 0});
  Buffer squares_ = make_row_squares(*chip_, *table_);
  Floats queries_{{2, 2}, {1, 0, 0, -1}};
  Floats scores_{{2, 3}};
  Ints ids_{{2, 3}};
  VectorSearch op_;
};

TEST_F(VectorSearchTest, AnExampleByHand) {
  chip_->vector_search(op_);
  EXPECT_THAT(ids_.list(), ::testing::ElementsAre(1, 0, 3, 0, 3, 2));  // of equals the smaller id
  EXPECT_THAT(scores_.list(), ::testing::ElementsAre(3, 1, 1, 0, 0, -1));
  EXPECT_EQ(op_.flops(), 32);
  EXPECT_EQ(op_.bytes(), 32 + 16 + 24 + 24);
}

TEST_F(VectorSearchTest, ByDistance) {
  EXPECT_THAT(
      std::vector<float>(static_cast<float*>(squares_.data()), static_cast<float*>(squares_.data()) + 4),
      ::testing::ElementsAre(1, 25, 1, 1));
  chip_->vector_search(by_distance());
  EXPECT_THAT(ids_.list(), ::testing::ElementsAre(0, 3, 2, 0, 3, 2));
  EXPECT_THAT(scores_.list(), ::testing::ElementsAre(0, 0, 2, 2, 2, 4));
}

TEST_F(VectorSearchTest, NanIsLast) {
  const auto table = weight_of(*chip_, 4, 2, {NAN, 0, -3, 4, NAN, 1, -INFINITY, 0});
  op_.table = table.get(), op_.queries = op_.queries.slice(0, 1), op_.scores = reshaped(scores_, {1, 4});
  op_.ids = reshaped(ids_, {1, 4});
  chip_->vector_search(op_);
  EXPECT_THAT(std::vector<int>(ids_.data(), ids_.data() + 4), ::testing::ElementsAre(1, 3, 0, 2));
}

// More than are multiplied at once, whose rows other threads look at, find what one query and thread does.
TEST(CpuVectorSearchTest, ManyQueriesFindWhatEachDoesAlone) {
  constexpr int64_t kQueries = 530, kRows = 3000, kColumns = 8, kFound = 40;
  std::vector<float> rows(kRows * kColumns), of_queries(kQueries * kColumns);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i * 2654435761u % 4294967291u % 7);
  for (size_t i = 0; i < of_queries.size(); ++i) of_queries[i] = static_cast<float>(i * 40503u % 65521u % 5);
  const Floats queries({kQueries, kColumns}, of_queries);
  std::vector<std::vector<int32_t>> found;
  for (const int threads : {1, 3}) {
    const std::unique_ptr<Backend> chip = make_backend("cpu", {.threads = threads});
    const auto table = weight_of(*chip, kRows, kColumns, rows);
    const Floats scores({kQueries, kFound});
    const Ints ids({kQueries, kFound});
    const int64_t at_once = threads == 1 ? 1 : kQueries;
    for (int64_t first = 0; first < kQueries; first += at_once) {
      VectorSearch op;
      op.queries = queries.tensor().slice(first, at_once), op.table = table.get();
      op.scores = scores.tensor().slice(first, at_once), op.ids = ids.tensor().slice(first, at_once);
      const Bytes workspace({static_cast<int64_t>(chip->workspace_bytes(op))});
      op.workspace = workspace;
      chip->vector_search(op);
    }
    found.push_back(ids.list());
  }
  EXPECT_EQ(found[0], found[1]);
}

TEST_F(VectorSearchTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  EXPECT_EQ(refusal(by_distance()), "");
  VectorSearch op = op_;
  op.table = nullptr;
  EXPECT_EQ(refusal(op), "vector_search: table is absent");
  op = op_, op.queries = reshaped(queries_, {4, 1});
  EXPECT_EQ(refusal(op), "vector_search: queries is F32[4, 1], expected F32[4, 2]");
  op = op_, op.scores = reshaped(scores_, {6});
  EXPECT_EQ(refusal(op), "vector_search: scores is F32[6], expected 2 dimensions");
  op = op_, op.scores = reshaped(scores_, {1, 6});
  EXPECT_EQ(refusal(op), "vector_search: 6 neighbours are asked for of 4 rows, expected 1 to 4");
  op = op_, op.scores = reshaped(scores_, {2, 0});
  EXPECT_EQ(refusal(op), "vector_search: 0 neighbours are asked for of 4 rows, expected 1 to 4");
  const auto large = empty_weight(*chip_, DType::kF32, 2000, 2);
  op = op_, op.table = large.get(), op.scores = reshaped(scores_, {2, 1025});
  EXPECT_EQ(refusal(op), "vector_search: 1025 neighbours are asked for of 2000 rows, expected 1 to 1024");
  op = op_, op.ids = reshaped(ids_, {3, 2});
  EXPECT_EQ(refusal(op), "vector_search: ids is I32[3, 2], expected I32[2, 3]");
  op = op_, op.compute = Compute::kQ8;
  EXPECT_EQ(refusal(op).substr(0, 14), "vector_search:");
  op = by_distance(), op.squares = {};
  EXPECT_EQ(refusal(op), "vector_search: squares is absent, expected F32[4]");
  op = by_distance(), op.metric = Metric::kDot;
  EXPECT_EQ(refusal(op), "vector_search: squares are of l2 alone");
  const auto blocks = empty_weight(*chip_, DType::kQ8_0, 4, 32);
  const Floats wide{{2, 32}};
  op = by_distance(), op.table = blocks.get(), op.queries = wide, op.compute = Compute::kQ8;
  EXPECT_EQ(refusal(op), "vector_search: distances are computed in f32 or bf16 alone");
  op = op_, op.scores.data = queries_.data();
  EXPECT_EQ(refusal(op), "vector_search: scores F32[2, 3] overlaps queries F32[2, 2]");
  op = op_, op.ids.data = scores_.data();
  EXPECT_EQ(refusal(op), "vector_search: ids I32[2, 3] overlaps scores F32[2, 3]");
}

}  // namespace
}  // namespace qiao
