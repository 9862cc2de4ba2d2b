// Chips by name. The registry that tests link has no CUDA chip (qiao_cuda_program() of
// cmake/QiaoTargets.cmake).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/backend.h"
#include "base/error.h"

namespace qiao {
namespace {

std::string refusal_of(std::string_view device) {
  try {
    make_backend(device);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kNotFound);
    return e.what();
  }
  return "";
}

TEST(RegistryTest, AutoIsTheFirstThatIsThere) {
  EXPECT_EQ(make_backend("auto")->chip(), chip_names().front());
  EXPECT_EQ(make_backend("reference")->chip(), "reference");
}

TEST(RegistryTest, AnUnknownNameListsTheKnown) {
  EXPECT_EQ(refusal_of("gpu"), "--device gpu: no such chip; this program has: auto, cpu, reference");
  EXPECT_EQ(refusal_of(""), "--device : no such chip; this program has: auto, cpu, reference");
  EXPECT_EQ(refusal_of("cpu:0"), "--device cpu:0: cpu is one chip and takes no number; use --device cpu");
}

TEST(RegistryTest, AChipThatIsNotBuiltInIsToldApart) {
  for (const char* device : {"cuda", "cuda:1"}) {
    EXPECT_THAT(refusal_of(device),
                ::testing::HasSubstr("this program was built without cuda; it has: auto, cpu"));
  }
}

}  // namespace
}  // namespace qiao
