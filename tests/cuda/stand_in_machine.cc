// The device of every test of this program; what kernels did wrong fails the test in which they did.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/cuda_stand_in/stand_in.h"

namespace qiao {
namespace {

class Watch : public ::testing::EmptyTestEventListener {
  void OnTestStart(const ::testing::TestInfo&) override {
    stand_in::Machine machine;
    machine.guard_device_memory = true;  // code that reads it on the host ends the process
    stand_in::reset(machine);
  }
  void OnTestEnd(const ::testing::TestInfo&) override {
    EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty());
    EXPECT_GT(stand_in::use().launches, 0) << "the chip was not used";
    if (!stand_in::use().lost) {
      EXPECT_EQ(stand_in::use().allocations, 0);
    }
  }
};

[[maybe_unused]] const bool watching = [] {
  ::testing::UnitTest::GetInstance()->listeners().Append(new Watch);
  return true;
}();

}  // namespace
}  // namespace qiao
