// A feed-forward's gate on the CUDA chip: in the product's call where nobody needs what it gates, with the
// same bits where somebody does.
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "nn/layers.h"
#include "tensor/floats.h"

namespace qiao::nn {
namespace {

class OpsInOrder final : public OpWatch {
 public:
  void on_op(std::string_view op, double, double, double) override { names += std::string(op) + " "; }
  std::string names;
};

class CudaGateTest : public ::testing::Test {
 protected:
  static constexpr int64_t kTokens = 40, kWidth = 64, kInner = 48;

  // Numbers from -1 to 1.
  static std::vector<float> numbers(int64_t count, int64_t step) {
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(static_cast<int64_t>(i) * step % 257 - 128) / 128;
    return values;
  }
  std::shared_ptr<Weight> weight(int64_t experts, int64_t rows, int64_t columns, int64_t step,
                                 DType dtype = DType::kBF16) {
    const std::vector<float> values = numbers(experts * rows * columns, step);
    std::vector<std::byte> bytes(values.size() * static_cast<size_t>(row_bytes(dtype, 1)));
    from_floats(values, dtype, bytes.data());
    WeightSource source{.experts = experts, .columns = columns};
    for (int64_t e = 0; e < experts; ++e)
      source.parts.push_back({dtype, rows, bytes.data() + e * rows * row_bytes(dtype, columns)});
    return backend_->make_weight(source);
  }
  WeightPiece piece(int64_t experts, int64_t rows, int64_t columns, int64_t step, int64_t first_row = 0) {
    return {weight(experts, rows, columns, step), Compute::kBF16, first_row};
  }

  struct Run {
    std::string ops;
    std::vector<float> y;
  };
  // What `layer` makes of 40 tokens, in memory that was measured.
  template <class Layer, class Prepare>
  Run run(const Layer& layer, Prepare prepare) {
    const auto pass = [&](Context& context) {
      const Tensor x = context.take(DType::kF32, {kTokens, kWidth});
      const std::vector<float> values = numbers(kTokens * kWidth, 7);
      if (!context.measuring()) backend_->upload(x.data, values.data(), values.size() * sizeof(float));
      const Tensor y = context.take(DType::kF32, {kTokens, kWidth});
      layer.forward(context, x, y);
      return y;
    };
    Context measure(*backend_);
    Tape imagined(*backend_);
    prepare(measure, imagined);
    pass(measure);
    const Buffer scratch = backend_->allocate(measure.peak());
    Context context(*backend_, scratch.data(), scratch.bytes());
    Tape tape(*backend_, scratch.data(), 0);
    prepare(context, tape);
    OpsInOrder told;
    backend_->set_watch(&told);
    const Tensor y = pass(context);
    backend_->set_watch(nullptr);
    Run ran{told.names, std::vector<float>(static_cast<size_t>(y.elements()))};
    backend_->download(ran.y.data(), y.data, ran.y.size() * sizeof(float));
    return ran;
  }
  template <class Layer>
  Run run(const Layer& layer) {
    return run(layer, [](Context&, Tape&) {});
  }
  static void expect_same(const Run& one, const Run& other) {
    EXPECT_EQ(std::memcmp(one.y.data(), other.y.data(), one.y.size() * sizeof(float)), 0);
  }

  std::unique_ptr<Backend> backend_ = make_backend("cuda");
};

TEST_F(CudaGateTest, AFeedForwardGatesInOneCallWhereNobodyNeedsTheRest) {
  MlpLayer layer;
  layer.gate_up.pieces.push_back(piece(1, 2 * kInner, kWidth, 11));
  layer.down.pieces.push_back(piece(1, kWidth, kInner, 13));
  const Run in_one = run(layer);
  EXPECT_EQ(in_one.ops, "linear linear ");

  const Run recorded = run(layer, [](Context& context, Tape& tape) { context.record_on(tape); });
  EXPECT_EQ(recorded.ops, "linear gated_activation linear ");
  expect_same(recorded, in_one);

  // An adapter of other rows than this step's changes nothing.
  LowRankAdapter adapter;
  adapter.a = weight(1, 2, kWidth, 3, DType::kF32);
  adapter.parts.push_back({weight(1, kInner, 2, 5, DType::kF32), 0, 0});
  layer.gate_up.adapters.push_back(adapter);
  const Run unused = run(layer);
  EXPECT_EQ(unused.ops, "linear linear ");
  expect_same(unused, in_one);
  const AdapterRows own{0, 8, 3};
  const Run adapted = run(layer, [&](Context& context, Tape&) { context.set_adapter_rows({&own, 1}); });
  EXPECT_EQ(adapted.ops, "linear linear linear gated_activation linear ");
  const auto row_bytes = kWidth * sizeof(float);
  EXPECT_EQ(std::memcmp(adapted.y.data(), in_one.y.data(), 8 * row_bytes), 0);
  EXPECT_NE(std::memcmp(adapted.y.data() + 8 * kWidth, in_one.y.data() + 8 * kWidth, 3 * row_bytes), 0);

  MlpLayer in_pieces;
  in_pieces.gate_up.pieces = {piece(1, kInner, kWidth, 11), piece(1, kInner, kWidth, 17, kInner)};
  in_pieces.down.pieces = layer.down.pieces;
  EXPECT_EQ(run(in_pieces).ops, "linear linear gated_activation linear ");
}

TEST_F(CudaGateTest, ExpertsGateInOneCallWhereNobodyNeedsTheRest) {
  constexpr int64_t kExperts = 2;
  MoeLayer layer;
  layer.experts = kExperts, layer.experts_per_token = 2;
  layer.router.pieces.push_back({weight(1, kExperts, kWidth, 19, DType::kF32), Compute::kF32, 0});
  layer.gate_up.pieces.push_back(piece(kExperts, 2 * kInner, kWidth, 11));
  layer.down.pieces.push_back(piece(kExperts, kWidth, kInner, 13));
  const Run in_one = run(layer);
  EXPECT_EQ(in_one.ops, "linear moe_route moe_permute grouped_linear grouped_linear moe_combine ");
  const Run recorded = run(layer, [](Context& context, Tape& tape) { context.record_on(tape); });
  EXPECT_EQ(recorded.ops,
            "linear moe_route moe_permute grouped_linear gated_activation grouped_linear moe_combine ");
  expect_same(recorded, in_one);
}

}  // namespace
}  // namespace qiao::nn
