// Ways back in BF16 on the stand-in: the same bits on Hopper and before it, and in blocks of either size;
// what is beyond the rows that the device counts is not read. Conformance holds the bits to the law.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/cuda_class.h"
#include "backend/cuda/gradient.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "tensor/half.h"

namespace qiao::cuda {
namespace {

struct GradientCase {
  int64_t tokens, rows, columns;
  std::vector<int32_t> counts = {};  // of experts
  int64_t gap = 0;                   // between rows of dy and of dx
};

class CudaGradientTest : public ::testing::Test {
 public:
  void TearDown() override { EXPECT_TRUE(stand_in::faults().empty()); }

  std::vector<float> floats(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& v : values) v = static_cast<float>(random_() % 2001) * 1e-3f - 1;
    return values;
  }

  struct Chip {
    std::unique_ptr<Backend> backend;
    std::vector<Buffer> buffers;

    explicit Chip(const stand_in::Machine& machine) {
      stand_in::reset(machine);
      backend = make_cuda_backend({});
    }
    template <class T>
    Tensor tensor(DType dtype, std::initializer_list<int64_t> shape, const std::vector<T>& values) {
      buffers.push_back(backend->allocate(values.size() * sizeof(T)));
      backend->upload(buffers.back().data(), values.data(), values.size() * sizeof(T));
      return Tensor(buffers.back().data(), dtype, shape);
    }
    template <class Op>
    void with_workspace(Op& op) {
      const auto bytes = static_cast<int64_t>(backend->workspace_bytes(op));
      op.workspace = tensor(DType::kU8, {bytes}, std::vector<uint8_t>(static_cast<size_t>(bytes), 0xff));
    }
    void download(std::vector<float>& to, const Tensor& from) const {
      backend->download(to.data(), from.data, to.size() * sizeof(float));
    }
  };

  struct Operands {
    std::vector<float> dy, x, dx, dw;
    std::vector<uint16_t> weight;
  };
  Operands operands(const GradientCase& of) {
    const int64_t experts = of.counts.empty() ? 1 : std::ssize(of.counts);
    Operands o{floats(of.tokens * (of.rows + of.gap)),
               floats(of.tokens * of.columns),
               floats(of.tokens * (of.columns + of.gap)),
               floats(experts * of.rows * of.columns),
               {}};
    for (const float v : floats(experts * of.rows * of.columns)) o.weight.push_back(float_to_bf16(v));
    return o;
  }

  // dx, added to, with dw behind it.
  static std::vector<float> gradients(const stand_in::Machine& machine, const GradientCase& of, Operands o) {
    Chip chip(machine);
    WeightSource source;
    source.experts = of.counts.empty() ? 1 : std::ssize(of.counts);
    source.columns = of.columns;
    const auto* bytes = reinterpret_cast<const std::byte*>(o.weight.data());
    for (int64_t e = 0; e < source.experts; ++e)
      source.parts.push_back({DType::kBF16, of.rows, bytes + e * of.rows * of.columns * 2});
    const std::unique_ptr<Weight> weight = chip.backend->make_weight(source);
    const auto set = [&](auto& op) {
      op.dy = chip.tensor(DType::kF32, {of.tokens, of.rows + of.gap}, o.dy).narrow(1, 0, of.rows);
      op.x = chip.tensor(DType::kF32, {of.tokens, of.columns}, o.x);
      op.dx = chip.tensor(DType::kF32, {of.tokens, of.columns + of.gap}, o.dx).narrow(1, 0, of.columns);
      op.add_dx = true, op.weight = weight.get(), op.compute = Compute::kBF16;
    };
    Tensor dx, dw;
    if (of.counts.empty()) {
      LinearBackward op;
      set(op);
      dx = op.dx, dw = op.dw = chip.tensor(DType::kF32, {of.rows, of.columns}, o.dw);
      chip.with_workspace(op);
      chip.backend->linear_backward(op);
    } else {
      GroupedLinearBackward op;
      set(op);
      dx = op.dx, dw = op.dw = chip.tensor(DType::kF32, {source.experts, of.rows, of.columns}, o.dw);
      op.counts = chip.tensor(DType::kI32, {source.experts}, of.counts);
      chip.with_workspace(op);
      chip.backend->grouped_linear_backward(op);
    }
    chip.download(o.dx, dx);
    chip.download(o.dw, dw);
    o.dx.insert(o.dx.end(), o.dw.begin(), o.dw.end());
    return o.dx;
  }

  void expect_same(const GradientCase& of, const stand_in::Machine& one, const stand_in::Machine& other) {
    const Operands o = operands(of);
    const std::vector<float> a = gradients(one, of, o), b = gradients(other, of, o);
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0)
        << of.tokens << " " << of.rows << " " << of.columns;
    EXPECT_FALSE(std::isnan(a.front()) || std::isnan(a.back()));
  }

  std::mt19937 random_{12};
  const stand_in::Machine hopper_;
  const stand_in::Machine before_ = [] {
    stand_in::Machine machine;
    machine.major = 8;
    return machine;
  }();
};

TEST_F(CudaGradientTest, HopperHasTheBitsOfTheDevicesBefore) {
  expect_same({1, 1, 1}, hopper_, before_);
  expect_same({16, 64, 64}, hopper_, before_);
  expect_same({17, 20, 24}, hopper_, before_);
  expect_same({70, 130, 67, {}, 3}, hopper_, before_);
  expect_same({129, 300, 200, {}, 4}, hopper_, before_);
  expect_same({1100, 9, 40}, hopper_, before_);  // chains of more than a segment of the forward pass
}

// Blocks of 128 rows by 256 columns come where there are a hundred of them and shared memory for them.
TEST_F(CudaGradientTest, BlocksOfEitherSizeHaveTheSameBits) {
  stand_in::Machine small;
  small.block_shared_bytes = 99 * 1024;
  std::vector<int32_t> counts(30, 0);
  counts[0] = 3, counts[7] = 33, counts[29] = 70;
  expect_same({106, 130, 259, counts, 1}, hopper_, small);
  counts.assign(60, 0);
  counts[59] = 64;
  expect_same({64, 128, 512, counts}, hopper_, small);
}

// What token_logprob_backward has in its workspace beyond the rows that carry a loss.
TEST_F(CudaGradientTest, RowsBeyondTheCountAreNotRead) {
  constexpr int64_t kTokens = 70, kCount = 37, kRows = 40, kColumns = 50;
  for (const auto& machine : {hopper_, before_}) {
    Operands o = operands({kTokens, kRows, kColumns});
    std::vector<float> expected = o.dw;
    const auto rounded = [](float v) { return static_cast<double>(bf16_to_float(float_to_bf16(v))); };
    std::fill(o.dy.begin() + kCount * kRows, o.dy.end(), NAN);
    std::fill(o.x.begin() + kCount * kColumns, o.x.end(), NAN);
    Chip chip(machine);
    const Tensor dy = chip.tensor(DType::kF32, {kTokens, kRows}, o.dy);
    const Tensor x = chip.tensor(DType::kF32, {kTokens, kColumns}, o.x);
    const Tensor dw = chip.tensor(DType::kF32, {kRows, kColumns}, o.dw);
    const Tensor count = chip.tensor(DType::kI32, {1}, std::vector<int32_t>{kCount});
    const size_t bytes = bf16_gradient_bytes(1, kRows, kColumns, kTokens);
    const Tensor workspace =
        chip.tensor(DType::kU8, {static_cast<int64_t>(bytes)}, std::vector<uint8_t>(bytes, 0xff));
    WeightGradientArguments a;
    a.dy = dy.as<float>(), a.dy_stride = kRows, a.x = x.as<float>(), a.x_stride = kColumns;
    a.tokens = kTokens, a.rows = kRows, a.columns = kColumns, a.counts = count.as<int32_t>();
    a.dw = dw.as<float>();
    run_weight_gradient_bf16(static_cast<const CudaBackend&>(*chip.backend), a, workspace.as<std::byte>());
    chip.download(o.dw, dw);
    for (int64_t i = 0; i < kRows * kColumns; ++i) {
      double sum = static_cast<double>(expected[static_cast<size_t>(i)]), size = std::abs(sum);
      for (int64_t t = 0; t < kCount; ++t) {
        const double term = rounded(o.dy[static_cast<size_t>(t * kRows + i / kColumns)]) *
                            rounded(o.x[static_cast<size_t>(t * kColumns + i % kColumns)]);
        sum += term, size += std::abs(term);
      }
      ASSERT_NEAR(o.dw[static_cast<size_t>(i)], sum, (kCount + 2) * 0x1.01p-24 * size) << i;
    }
  }
}

}  // namespace
}  // namespace qiao::cuda
