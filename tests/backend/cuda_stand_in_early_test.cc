// The stand-in finds kernels that read before they wait what a kernel before them writes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "backend/cuda/kernel.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "base/error.h"

namespace qiao::cuda {
namespace {

using ::testing::HasSubstr;

__global__ void fill(float* out, float value) {
  begin_kernel();
  out[threadIdx.x] = value;
}
// Its operand is asked for first, as products do with their weights.
__global__ void copy_of_early(const float* in, float* out) {
  auto* kept = shared_memory<float>();
  copy_async<4>(kept + threadIdx.x, in + threadIdx.x);
  copy_async_commit();
  wait_for_previous();
  copy_async_wait<0>();
  out[threadIdx.x] = kept[threadIdx.x];
}

class CudaStandInEarlyTest : public ::testing::Test {
 protected:
  static int device_of_new_machine() {
    stand_in::reset();
    return 0;
  }
  void write(float value) { launch("fill", stream_, fill, 1, 32, 0, weight_.data(), value); }
  void write_other() { launch("fill", stream_, fill, 1, 32, 0, other_.data(), 5.0f); }
  void read() { launch("copy", stream_, copy_of_early, 2, 32, 128, weight_.data(), out_.data()); }
  std::string end() {
    try {
      stream_.synchronize();
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }

  Stream stream_{device_of_new_machine()};
  std::array<float, 32> weight_{}, other_{}, out_{};
};

TEST_F(CudaStandInEarlyTest, WhatTheKernelBeforeWritesIsNotReadEarly) {
  write(1);
  read();
  EXPECT_THAT(end(), HasSubstr("hold_next"));
}

TEST_F(CudaStandInEarlyTest, NorWhatTheOneBeforeThatWrites) {
  write(1);
  write_other();
  read();
  EXPECT_THAT(end(), HasSubstr("hold_next"));
}

TEST_F(CudaStandInEarlyTest, EventsHoldNothing) {
  Event event;
  write(1);
  event.record(stream_);
  read();
  EXPECT_THAT(end(), HasSubstr("hold_next"));
}

TEST_F(CudaStandInEarlyTest, AKernelThatIsHeldSeesAll) {
  write(1);
  stream_.hold_next();
  read();
  EXPECT_EQ(end(), "");
  EXPECT_EQ(out_[7], 1.0f);
  write(2);
  stream_.hold_next();
  write_other();
  read();  // begins once that has, which was held
  EXPECT_EQ(end(), "");
  EXPECT_EQ(out_[7], 2.0f);
}

TEST_F(CudaStandInEarlyTest, ACopyHolds) {
  write(1);
  QIAO_CUDA(cudaMemsetAsync(other_.data(), 0, sizeof other_, stream_.handle()));
  read();
  EXPECT_EQ(end(), "");
  EXPECT_EQ(out_[7], 1.0f);
}

TEST_F(CudaStandInEarlyTest, InAGraphToo) {
  const auto record = [&](bool hold) {
    Graph::begin(stream_);
    write(1);
    if (hold) stream_.hold_next();
    read();
    return Graph::end(stream_);
  };
  const Graph held = record(true), not_held = record(false);
  ASSERT_TRUE(held.launch(stream_));
  EXPECT_EQ(end(), "");
  weight_.fill(0);
  ASSERT_TRUE(not_held.launch(stream_));
  EXPECT_THAT(end(), HasSubstr("hold_next"));
}

}  // namespace
}  // namespace qiao::cuda
