// The CUDA chip's own kernels and classes on the stand-in: green but for what it lists as missing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/conformance/conformance.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda_stand_in/stand_in.h"

namespace qiao::conformance {
namespace {

class CudaConformanceTest : public ::testing::TestWithParam<std::string_view> {};

void expect_green(std::string_view op, const stand_in::Machine& machine) {
  stand_in::reset(machine);
  {
    const std::unique_ptr<Backend> chip = make_cuda_backend({});
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

}  // namespace
}  // namespace qiao::conformance
