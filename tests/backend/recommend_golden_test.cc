// embedding_bag, its way back and vector_search beside PyTorch (tests/golden/make_recommend.py), on the law
// and on this machine's CPU.
#include <filesystem>

#include "backend/op_test.h"
#include "backend/row_squares.h"
#include "base/file.h"
#include "base/json.h"

namespace qiao {
namespace {

Json golden(const char* what) {
  return parse_json(read_file(std::filesystem::path(QIAO_TEST_DATA) / "golden" / "recommend.json"),
                    "recommend.json")[what];
}
std::vector<float> floats(const Json& values) { return values.get<std::vector<float>>(); }
std::vector<int32_t> ints(const Json& values) { return values.get<std::vector<int32_t>>(); }

class RecommendGoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Backend> chip_ = make_backend(GetParam());
};

TEST_P(RecommendGoldenTest, BagsAndTheirGradientsArePyTorchs) {
  for (const Json& c : golden("bags")) {
    const std::vector<int32_t> of_ids = ints(c["ids"]), of_offsets = ints(c["offsets"]);
    const auto rows = c["rows"].get<int64_t>(), columns = c["columns"].get<int64_t>();
    const auto places = static_cast<int64_t>(of_ids.size());
    const auto bags = static_cast<int64_t>(of_offsets.size()) - 1;
    const bool weighted = c.contains("weights"), mean = c["mean"].get<bool>();
    const Floats table({rows, columns}, floats(c["table"])), out({bags, columns});
    const Ints ids({places}, of_ids), offsets({bags + 1}, of_offsets);
    const Floats weights({places}, weighted ? floats(c["weights"]) : std::vector<float>());
    EmbeddingBag op;
    op.table = table, op.ids = ids, op.offsets = offsets, op.mean = mean, op.out = out;
    if (weighted) op.weights = weights;
    chip_->embedding_bag(op);
    // Sums are exact: a mean's division rounds once, and 1 / the rows, on the way back, once more for each
    // of the places.
    const auto expect = [](const std::vector<float>& got, const Json& expected, double relative) {
      const auto values = expected.get<std::vector<double>>();
      ASSERT_EQ(got.size(), values.size());
      for (size_t i = 0; i < got.size(); ++i)
        EXPECT_LE(std::abs(static_cast<double>(got[i]) - values[i]), relative) << i;
    };
    expect(out.list(), c["out"], mean ? 4 * 0x1p-24 : 0);
    const Floats dout({bags, columns}, floats(c["dout"])), dtable({rows, columns}), dweights({places});
    EmbeddingBagBackward back;
    back.table = table, back.ids = ids, back.offsets = offsets, back.weights = op.weights, back.mean = mean;
    back.dout = dout, back.dtable = dtable;
    if (weighted) back.dweights = dweights;
    const Bytes workspace({static_cast<int64_t>(chip_->workspace_bytes(back))});
    back.workspace = workspace;
    chip_->embedding_bag_backward(back);
    // |dout| is below 4 and a row has places + 1 roundings at most, of sums of no more than 4 each.
    const auto n = static_cast<double>(places);
    expect(dtable.list(), c["dtable"], mean ? (n + 2) * 0x1p-24 * 4 * n : 0);
    if (weighted) expect(dweights.list(), c["dweights"], 0);
  }
}

TEST_P(RecommendGoldenTest, TheNearestRowsArePyTorchs) {
  for (const Json& c : golden("searches")) {
    const std::vector<float> of_table = floats(c["table"]), of_queries = floats(c["queries"]);
    const auto columns = c["columns"].get<int64_t>(), k = c["k"].get<int64_t>();
    const int64_t rows = static_cast<int64_t>(of_table.size()) / columns;
    const int64_t batch = static_cast<int64_t>(of_queries.size()) / columns;
    const auto table = weight_of(*chip_, rows, columns, of_table);
    const Floats queries({batch, columns}, of_queries), scores({batch, k});
    const Ints ids({batch, k});
    VectorSearch op;
    op.queries = queries, op.table = table.get(), op.scores = scores, op.ids = ids;
    const Buffer squares = make_row_squares(*chip_, *table);
    if (c["metric"] == "l2") {
      op.metric = Metric::kL2, op.squares = Tensor(squares.data(), DType::kF32, {rows});
    }
    const Bytes workspace({static_cast<int64_t>(chip_->workspace_bytes(op))});
    op.workspace = workspace;
    chip_->vector_search(op);
    EXPECT_EQ(ids.list(), ints(c["ids"]));
    EXPECT_EQ(scores.list(), floats(c["scores"]));
  }
}

INSTANTIATE_TEST_SUITE_P(Chips, RecommendGoldenTest, ::testing::Values("reference", "cpu"));

}  // namespace
}  // namespace qiao
