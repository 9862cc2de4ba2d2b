// vector_search and embedding_bag_backward on the stand-in, where there is more than a block takes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "backend/op_test.h"

namespace qiao {
namespace {

class CudaSearchTest : public ::testing::Test {
 protected:
  CudaSearchTest() {
    stand_in::reset();
    chip_ = make_cuda_backend({});  // after that, as it gives the stand-in work
  }
  ~CudaSearchTest() override { EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty()); }
  template <typename T>
  Tensor on_chip(DType dtype, std::initializer_list<int64_t> shape, const std::vector<T>& values) {
    Tensor tensor(nullptr, dtype, shape);
    const auto bytes = static_cast<size_t>(tensor.bytes());
    buffers_.push_back(chip_->allocate(std::max<size_t>(bytes, 1)));
    tensor.data = buffers_.back().data();
    if (!values.empty()) chip_->upload(tensor.data, values.data(), bytes);
    return tensor;
  }
  template <typename Op>
  void give_workspace(Op* op) {
    const auto bytes = static_cast<int64_t>(chip_->workspace_bytes(*op));
    op->workspace = on_chip<uint8_t>(DType::kU8, {bytes}, {});
  }
  template <typename T>
  std::vector<T> read(const Tensor& tensor) {
    std::vector<T> values(static_cast<size_t>(tensor.elements()));
    chip_->download(values.data(), tensor.data, values.size() * sizeof(T));
    return values;
  }
  std::unique_ptr<Backend> chip_;
  std::vector<Buffer> buffers_;
};

// Values of rows are small whole numbers of a fixed walk, many of them alike: ties decide much.
std::vector<float> walk(int64_t count, int64_t kinds) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(i * 2654435761u % 4294967291u % static_cast<size_t>(kinds));
  return values;
}

// The ids by sorting, of rows of one column: the score is query * row.
std::vector<int32_t> best_rows(const std::vector<float>& rows, float query, int64_t k) {
  std::vector<int32_t> order(rows.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int32_t a, int32_t b) {
    const float x = query * rows[static_cast<size_t>(a)], y = query * rows[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  order.resize(static_cast<size_t>(k));
  return order;
}

TEST_F(CudaSearchTest, ManyPartsOfATableAreOne) {
  constexpr int64_t kRows = 40000, kBatch = 2;
  for (const int64_t k : {1, 10, 600, 1024}) {
    for (const int64_t kinds : {3, 5000, 1000000}) {
      const std::vector<float> rows = walk(kRows, kinds), queries = {1, -2};
      const auto table = weight_of(*chip_, kRows, 1, rows);
      VectorSearch op;
      op.queries = on_chip(DType::kF32, {kBatch, 1}, queries), op.table = table.get();
      op.scores = on_chip<float>(DType::kF32, {kBatch, k}, {});
      op.ids = on_chip<int32_t>(DType::kI32, {kBatch, k}, {});
      give_workspace(&op);
      chip_->vector_search(op);
      const std::vector<int32_t> ids = read<int32_t>(op.ids);
      for (int64_t b = 0; b < kBatch; ++b) {
        const std::vector<int32_t> found(ids.begin() + b * k, ids.begin() + (b + 1) * k);
        EXPECT_EQ(found, best_rows(rows, queries[static_cast<size_t>(b)], k)) << k << " of " << kinds;
      }
    }
  }
}

// Rows that get better to the end: every list is full again and again.
TEST_F(CudaSearchTest, RowsInTheWorstOrder) {
  constexpr int64_t kRows = 20000;
  std::vector<float> rows(kRows);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i);
  const auto table = weight_of(*chip_, kRows, 1, rows);
  for (const int64_t k : {5, 1000}) {
    VectorSearch op;
    op.queries = on_chip<float>(DType::kF32, {1, 1}, {1}), op.table = table.get();
    op.scores = on_chip<float>(DType::kF32, {1, k}, {}), op.ids = on_chip<int32_t>(DType::kI32, {1, k}, {});
    give_workspace(&op);
    chip_->vector_search(op);
    EXPECT_EQ(read<int32_t>(op.ids), best_rows(rows, 1, k));
  }
}

// So many queries that the table comes in pieces, and a piece's best are looked for above those before.
TEST_F(CudaSearchTest, PiecesOfATableAreOne) {
  constexpr int64_t kRows = 16500, kBatch = 512, kFound = 3;
  const std::vector<float> rows = walk(kRows, 9000);
  std::vector<float> queries(kBatch, 1);
  queries[77] = -1;
  const auto table = weight_of(*chip_, kRows, 1, rows);
  VectorSearch op;
  op.queries = on_chip(DType::kF32, {kBatch, 1}, queries), op.table = table.get();
  op.scores = on_chip<float>(DType::kF32, {kBatch, kFound}, {});
  op.ids = on_chip<int32_t>(DType::kI32, {kBatch, kFound}, {});
  give_workspace(&op);
  chip_->vector_search(op);
  const std::vector<int32_t> ids = read<int32_t>(op.ids);
  const std::vector<int32_t> up = best_rows(rows, 1, kFound), down = best_rows(rows, -1, kFound);
  for (int64_t b = 0; b < kBatch; ++b) {
    const std::vector<int32_t> found(ids.begin() + b * kFound, ids.begin() + (b + 1) * kFound);
    EXPECT_EQ(found, b == 77 ? down : up) << b;
  }
}

// More places than a block sorts, several times over, and a row that most of them meet.
TEST_F(CudaSearchTest, SortedRunsOfPlacesAreMerged) {
  constexpr int64_t kPlaces = 9001, kRows = 700, kBags = 40;
  std::vector<int32_t> ids(kPlaces), offsets{0};
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = i % 3 != 0 ? 350 : static_cast<int32_t>(i * i * 31 % (kRows + 1));
  for (int64_t b = 1; b <= kBags; ++b) offsets.push_back(static_cast<int32_t>(b * kPlaces / kBags));
  std::vector<float> dout(kBags);
  for (size_t b = 0; b < dout.size(); ++b) dout[b] = static_cast<float>(b + 1);  // sums are exact
  EmbeddingBagBackward op;
  op.table = on_chip<float>(DType::kF32, {kRows, 1}, std::vector<float>(kRows));
  op.ids = on_chip(DType::kI32, {kPlaces}, ids);
  op.offsets = on_chip(DType::kI32, {kBags + 1}, offsets);
  op.dout = on_chip(DType::kF32, {kBags, 1}, dout);
  op.drows = on_chip(DType::kF32, {kPlaces, 1}, std::vector<float>(kPlaces));
  op.row_ids = on_chip<int32_t>(DType::kI32, {kPlaces}, {});
  op.dtable = on_chip(DType::kF32, {kRows, 1}, std::vector<float>(kRows, 1.0f));
  give_workspace(&op);
  chip_->embedding_bag_backward(op);
  std::map<int32_t, float> expected;
  for (size_t b = 0; b < dout.size(); ++b) {
    for (auto i = static_cast<size_t>(offsets[b]); i < static_cast<size_t>(offsets[b + 1]); ++i)
      if (ids[i] < kRows) expected[ids[i]] += dout[b];
  }
  const std::vector<int32_t> row_ids = read<int32_t>(op.row_ids);
  const std::vector<float> drows = read<float>(op.drows), dtable = read<float>(op.dtable);
  size_t row = 0;
  for (const auto& [id, sum] : expected) {
    EXPECT_EQ(row_ids[row], id);
    EXPECT_EQ(drows[row++], sum) << id;
    EXPECT_EQ(dtable[static_cast<size_t>(id)], 1 + sum) << id;
  }
  EXPECT_TRUE(std::all_of(row_ids.begin() + static_cast<std::ptrdiff_t>(row), row_ids.end(),
                          [](int32_t id) { return id == -1; }));
}

}  // namespace
}  // namespace qiao
