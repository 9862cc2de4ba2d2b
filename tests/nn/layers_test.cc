#include "nn/layers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backend/backend.h"

namespace qiao::nn {
namespace {

class LayersTest : public ::testing::Test {
 protected:
  LayersTest()
      : backend_(make_backend("reference")),
        scratch_(backend_->allocate(1 << 16)),
        context_(*backend_, scratch_.data(), scratch_.bytes()) {}

  Tensor put(std::initializer_list<int64_t> shape, const std::vector<float>& values) {
    const Tensor tensor = context_.take(DType::kF32, shape);
    backend_->upload(tensor.data, values.data(), values.size() * sizeof(float));
    return tensor;
  }
  std::vector<float> get(const Tensor& tensor) {
    std::vector<float> values(static_cast<size_t>(tensor.elements()));
    backend_->download(values.data(), tensor.data, values.size() * sizeof(float));
    return values;
  }
  WeightPiece piece(const std::vector<float>& values, int64_t columns, int64_t first_row) {
    WeightSource source{.columns = columns};
    source.parts.push_back({DType::kF32, static_cast<int64_t>(values.size()) / columns,
                            reinterpret_cast<const std::byte*>(values.data())});
    return {backend_->make_weight(source), Compute::kF32, first_row};
  }

  std::unique_ptr<Backend> backend_;
  Buffer scratch_;
  Context context_;
};

TEST_F(LayersTest, LinearPiecesFillTheirRowsOfTheOutput) {
  LinearLayer layer;
  layer.pieces.push_back(piece({1, 2}, 2, 0));         // row 0
  layer.pieces.push_back(piece({3, 4, -1, 5}, 2, 1));  // rows 1 and 2
  layer.bias = Parameter::upload(*backend_, {10, 20, 30});
  EXPECT_EQ(layer.rows(), 3);
  const Tensor y = put({2, 3}, {0, 0, 0, 0, 0, 0});
  layer.forward(context_, put({2, 2}, {1, 1, 2, 0}), y);
  EXPECT_EQ(get(y), (std::vector<float>{13, 27, 34, 12, 26, 28}));
  // The residual may be the output itself.
  layer.forward(context_, put({2, 2}, {1, 1, 2, 0}), y, y);
  EXPECT_EQ(get(y), (std::vector<float>{26, 54, 68, 24, 52, 56}));
}

TEST_F(LayersTest, RmsNormAddsTheResidualFirst) {
  const RmsNormLayer layer{Parameter::upload(*backend_, {1, 3}), 1.0f, 3.5f};
  const Tensor x = put({1, 2}, {1, 2}), residual = put({1, 2}, {2, 2});
  layer.forward(context_, x, x, residual, residual);
  EXPECT_EQ(get(residual), (std::vector<float>{3, 4}));
  // The mean of 9 and 16 and epsilon make 16, its root 4; gammas are 1 + 1 and 3 + 1.
  EXPECT_EQ(get(x), (std::vector<float>{1.5f, 4}));
}

// By one product itself, by a norm for several pieces, and so that a tape has both.
TEST_F(LayersTest, LinearNormsItsRowsFirst) {
  struct Norms final : OpWatch {
    void on_op(std::string_view op, double, double, double) override {
      count += op == "add_rms_norm" ? 1 : 0;
    }
    int count = 0;
  };
  const RmsNormLayer norm{Parameter::upload(*backend_, {1, 3}), 1.0f, 3.5f};  // makes 1.5 and 4 of 3 and 4
  LinearLayer one, two;
  one.pieces.push_back(piece({1, 0, 2, 1}, 2, 0));
  two.pieces.push_back(piece({1, 0}, 2, 0));
  two.pieces.push_back(piece({2, 1}, 2, 1));
  const Tensor x = put({1, 2}, {3, 4}), y = put({1, 2}, {10, 20});
  for (const bool records : {false, true}) {
    Tape tape(*backend_);
    if (records) context_.record_on(tape);
    for (const LinearLayer* layer : {&one, &two}) {
      Norms norms;
      backend_->set_watch(&norms);
      layer->forward(context_, x, y, y, Activation::kNone, 0, &norm);
      backend_->set_watch(nullptr);
      EXPECT_EQ(norms.count, 1);
      EXPECT_EQ(get(x), (std::vector<float>{3, 4}));
    }
  }
  EXPECT_EQ(get(y), (std::vector<float>{10 + 4 * 1.5f, 20 + 4 * 7.0f}));
}

TEST_F(LayersTest, MlpGatesThenProjectsOverItsInput) {
  MlpLayer layer;
  layer.gate_up.pieces.push_back(piece({1, 0, 0, 2}, 1, 0));  // gates 1, 0; ups 0, 2 of one input
  layer.down.pieces.push_back(piece({1, 1}, 2, 0));
  const Tensor x = put({1, 1}, {3});
  layer.forward(context_, x, x);
  EXPECT_FLOAT_EQ(get(x)[0], 0);  // silu(3) * 0 + silu(0) * 6
  layer.gate_up.pieces[0] = piece({1, 2, 1, 2}, 1, 0);
  layer.forward(context_, put({1, 1}, {1}), x);
  const double silu1 = 1 / (1 + std::exp(-1.0)), silu2 = 2 / (1 + std::exp(-2.0));
  EXPECT_FLOAT_EQ(get(x)[0], static_cast<float>(silu1 + 2 * silu2));
}

TEST_F(LayersTest, AScopeGivesBackWhatItTook) {
  void* before;
  {
    const Context::Scope scope(context_);
    before = context_.take(DType::kF32, {100}).data;
  }
  EXPECT_EQ(context_.take(DType::kI32, {3}).data, before);
}

TEST_F(LayersTest, TakenMemoryIsAligned) {
  for (int64_t count : {1, 17, 100})
    EXPECT_EQ(reinterpret_cast<uintptr_t>(context_.take(DType::kF32, {count}).data) % 64, 0u);
}

TEST_F(LayersTest, MeasuringTellsTheScratchMemoryThatRunningTakes) {
  MlpLayer layer;
  layer.gate_up.pieces.push_back(piece(std::vector<float>(40, 1.0f), 2, 0));  // [20, 2]
  layer.down.pieces.push_back(piece(std::vector<float>(20, 1.0f), 10, 0));    // [2, 10]
  Context measure(*backend_);
  const Tensor imagined = measure.take(DType::kF32, {5, 2});
  layer.forward(measure, imagined, imagined);
  // x: 40 bytes, the gates: 400, their products: 200; each in steps of 64.
  EXPECT_EQ(measure.peak(), 64u + 448u + 256u);
  Context runs(*backend_, scratch_.data(), measure.peak());
  const Tensor x = runs.take(DType::kF32, {5, 2});
  std::memset(x.data, 0, static_cast<size_t>(x.bytes()));
  layer.forward(runs, x, x);
  EXPECT_EQ(runs.peak(), measure.peak());
}

using LayersDeathTest = LayersTest;

TEST_F(LayersDeathTest, TakingMoreThanPlannedIsABug) {
  Context small(*backend_, scratch_.data(), 128);
  small.take(DType::kF32, {32});
  EXPECT_DEATH(small.take(DType::kF32, {1}), "bytes <= bytes_ - used_");
}

// Gradients of the one parameter there is.
class OneParameter final : public ParameterGradients {
 public:
  OneParameter(const Tensor& value, const Tensor& gradient) : value_(value), gradient_(gradient) {}
  Tensor of(const Weight&) override { return {}; }
  Tensor of_parameter(const Tensor& value) override {
    return value.data == value_.data ? gradient_ : Tensor();
  }

 private:
  Tensor value_, gradient_;
};

TEST_F(LayersTest, BagsOnATapeGiveGradientsToTheTableAndToWeightsThatWereComputed) {
  const Buffer memory = backend_->allocate(4096), own = backend_->allocate(256);
  auto* base = static_cast<std::byte*>(own.data());
  const Tensor table(base, DType::kF32, {3, 2}), dtable(base + 64, DType::kF32, {3, 2});
  const Tensor ids(base + 128, DType::kI32, {2}), offsets(base + 192, DType::kI32, {2});
  const auto upload = [&](const Tensor& to, const auto& values) {
    backend_->upload(to.data, values.data(), values.size() * 4);
  };
  upload(table, std::vector<float>{1, 2, 3, 4, 5, 6});
  upload(dtable, std::vector<float>{0, 0, 0, 0, 0, 1});
  upload(ids, std::vector<int32_t>{2, 0});
  upload(offsets, std::vector<int32_t>{0, 2});
  Tape tape(*backend_, memory.data(), memory.bytes());
  context_.record_on(tape);
  const Tensor weights = put({2}, {2, -1}), out = context_.take(DType::kF32, {1, 2});
  context_.embedding_bag({.table = table, .ids = ids, .offsets = offsets, .weights = weights, .out = out});
  EXPECT_EQ(get(out), (std::vector<float>{9, 10}));
  const Tensor dout = put({1, 2}, {1, 10}), dweights = put({2}, {0, 0});
  tape.place_gradient(out, dout, true);
  tape.place_gradient(weights, dweights, false);
  OneParameter parameters(table, dtable);
  tape.backward(&parameters);
  EXPECT_EQ(get(dtable), (std::vector<float>{-1, -10, 0, 0, 2, 21}));
  EXPECT_EQ(get(dweights), (std::vector<float>{65, 21}));
}

}  // namespace
}  // namespace qiao::nn
