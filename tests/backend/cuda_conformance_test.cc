// The CUDA chip's own kernels and classes on the stand-in: green but for what it lists as missing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/conformance/conformance.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda_stand_in/stand_in.h"

namespace qiao::conformance {
namespace {

class CudaConformanceTest : public ::testing::TestWithParam<std::string_view> {};

TEST_P(CudaConformanceTest, HoldsItsBounds) {
  stand_in::reset();
  {
    const std::unique_ptr<Backend> chip = make_cuda_backend({});
    Options options;
    options.op = GetParam();
    options.quick = true;
    options.bench = false;
    const Report report = run(*chip, options);
    EXPECT_THAT(report.faults, ::testing::IsEmpty()) << to_table(report);
  }
  EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty());
  EXPECT_EQ(stand_in::use().allocations, 0);
}

INSTANTIATE_TEST_SUITE_P(Ops, CudaConformanceTest, ::testing::ValuesIn(op_names()),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace qiao::conformance
