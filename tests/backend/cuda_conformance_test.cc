// The CUDA chip's own kernels and classes on the stand-in: green but for what it lists as missing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/conformance/conformance.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda_stand_in/stand_in.h"

namespace qiao::conformance {
namespace {

class CudaConformanceTest : public ::testing::TestWithParam<std::string_view> {};

void expect_green(std::string_view op, const stand_in::Machine& machine, bool fast = false) {
  stand_in::reset(machine);
  {
    const std::unique_ptr<Backend> chip = make_cuda_backend({.fast = fast});
    Options options;
    options.op = op;
    options.quick = true;
    options.bench = false;
    const Report report = run(*chip, options);
    EXPECT_THAT(report.faults, ::testing::IsEmpty()) << to_table(report);
  }
  EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty());
  EXPECT_EQ(stand_in::use().allocations, 0);
}

TEST_P(CudaConformanceTest, HoldsItsBounds) { expect_green(GetParam(), {}); }

// What takes other ways there.
TEST(CudaConformanceBeforeHopperTest, WaysBackOfProductsHoldTheirBounds) {
  stand_in::Machine before;
  before.major = 8;
  expect_green("linear_backward", before);
  expect_green("grouped_linear_backward", before);
}

INSTANTIATE_TEST_SUITE_P(Ops, CudaConformanceTest, ::testing::ValuesIn(op_names()),
                         [](const auto& info) { return std::string(info.param); });

// The ops whose order fast is free to choose.
class CudaFastConformanceTest : public ::testing::TestWithParam<std::string_view> {};

TEST_P(CudaFastConformanceTest, HoldsItsBounds) { expect_green(GetParam(), {}, true); }

// Where many rows give every multiprocessor a block of its own, K stays whole: other sums than those of few.
TEST(CudaFastTest, SumsOfManyRowsAreInOneSegment) {
  constexpr int64_t kRows = 512, kColumns = 512, kTokens = 130;
  const auto product = [&](bool fast, int64_t tokens) {
    stand_in::reset();
    const std::unique_ptr<Backend> chip = make_cuda_backend({.fast = fast});
    std::vector<float> x(static_cast<size_t>(tokens * kColumns)), y(static_cast<size_t>(tokens * kRows));
    std::vector<uint16_t> w(kRows * kColumns);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 2654435761u % 1000) * 1e-3f - 0.5f;
    for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<uint16_t>(0x3f00 + i * 40503u % 256);
    WeightSource source;
    source.columns = kColumns;
    source.parts = {{DType::kBF16, kRows, reinterpret_cast<const std::byte*>(w.data())}};
    const std::unique_ptr<Weight> weight = chip->make_weight(source);
    const Buffer of_x = chip->allocate(x.size() * 4), of_y = chip->allocate(y.size() * 4);
    chip->upload(of_x.data(), x.data(), x.size() * 4);
    Linear op;
    op.x = Tensor(of_x.data(), DType::kF32, {tokens, kColumns});
    op.y = Tensor(of_y.data(), DType::kF32, {tokens, kRows});
    op.weight = weight.get(), op.compute = Compute::kBF16;
    const auto bytes = static_cast<int64_t>(chip->workspace_bytes(op));
    const Buffer workspace = chip->allocate(static_cast<size_t>(bytes));
    op.workspace = Tensor(workspace.data(), DType::kU8, {bytes});
    chip->linear(op);
    chip->download(y.data(), of_y.data(), y.size() * 4);
    y.resize(kRows);  // the first token's
    return y;
  };
  const std::vector<float> alone = product(true, 1);
  EXPECT_EQ(alone, product(false, kTokens));
  EXPECT_NE(alone, product(true, kTokens));
  EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty());
}

// As bench/h200/run.sh asks for them: rows of few and of many tokens, of which the last is as it is alone.
TEST(CudaConformanceTimesTest, GivenProductsHoldTheirBits) {
  Options options;
  options.products = {{130, 256}};
  options.tokens = {3, 70, 131};
  for (const bool fast : {false, true}) {
    stand_in::reset();
    {
      const std::unique_ptr<Backend> chip = make_cuda_backend({.fast = fast});
      const Report report = run(*chip, options);
      ASSERT_EQ(report.lines.size(), 2);
      EXPECT_EQ(report.batch_invariant, !fast);
      for (const Line& line : report.lines) {
        EXPECT_TRUE(line.passed()) << to_table(report);
        EXPECT_EQ(line.benches.size(), 3);
      }
    }
    EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty());
    EXPECT_EQ(stand_in::use().allocations, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, CudaFastConformanceTest,
                         ::testing::Values("linear", "grouped_linear", "linear_backward", "token_logprob",
                                           "vector_search"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace qiao::conformance
