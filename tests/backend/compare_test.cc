// The comparator must fail what is wrong.
#include "backend/conformance/compare.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace qiao::conformance {
namespace {

// Compares a 3 x 2 output with its expected values, each bound 1e-6.
Errors compare_all(const std::vector<double>& actual) {
  const std::vector<double> expected = {1, -2, 3, 4, -5, 6};
  Errors errors;
  for (size_t i = 0; i < expected.size(); ++i) {
    compare(actual[i], expected[i], 1e-6, static_cast<int64_t>(i / 2), static_cast<int64_t>(i % 2), &errors);
  }
  return errors;
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(CompareTest, PassesWhatIsRight) {
  const Errors errors = compare_all({1, -2, 3 + 5e-7, 4, -5, 6});
  EXPECT_EQ(errors.failures, 0);
  EXPECT_EQ(errors.elements, 6);
  EXPECT_NEAR(errors.max_share, 0.5, 1e-6);
  EXPECT_NEAR(errors.mean_share(), 0.5 / 6, 1e-6);
  EXPECT_NEAR(errors.max_error, 5e-7, 1e-12);
}

TEST(CompareTest, AllZeroFails) { EXPECT_EQ(compare_all({0, 0, 0, 0, 0, 0}).failures, 6); }
TEST(CompareTest, ASwappedRowFails) { EXPECT_EQ(compare_all({3, 4, 1, -2, -5, 6}).failures, 4); }
TEST(CompareTest, AWrongSignFails) { EXPECT_EQ(compare_all({1, -2, 3, 4, 5, 6}).failures, 1); }
TEST(CompareTest, OneNanFails) { EXPECT_EQ(compare_all({1, -2, kNan, 4, -5, 6}).failures, 1); }
TEST(CompareTest, OneInfinityFails) { EXPECT_EQ(compare_all({1, -2, 3, kInfinity, -5, 6}).failures, 1); }
TEST(CompareTest, JustOverTheBoundFails) {
  EXPECT_EQ(compare_all({1 + 1.01e-6, -2, 3, 4, -5, 6}).failures, 1);
}

TEST(CompareTest, NanOfTheExpectedOrTheBoundFails) {
  Errors errors;
  EXPECT_FALSE(compare(1, kNan, 1, 0, 0, &errors));
  EXPECT_FALSE(compare(1, 1, kNan, 0, 0, &errors));
  EXPECT_FALSE(compare(kNan, kNan, kInfinity, 0, 0, &errors));
  EXPECT_FALSE(compare(0, -kInfinity, kInfinity, 0, 0, &errors));
  EXPECT_FALSE(compare(kInfinity, 0, kInfinity, 0, 0, &errors));
  EXPECT_EQ(errors.failures, 5);
}

TEST(CompareTest, ABoundOfZeroAsksForTheVerySame) {
  Errors errors;
  EXPECT_TRUE(compare(0.1, 0.1, 0, 0, 0, &errors));
  EXPECT_FALSE(compare(0.1, std::nextafter(0.1, 1), 0, 0, 0, &errors));
}

TEST(CompareTest, TheFirstFailureIsNamed) {
  EXPECT_EQ(compare_all({1, -2, 3, 4, 5, 7}).first_failure, "[2, 0]: 5, expected -5 ± 1e-06");
}

}  // namespace
}  // namespace qiao::conformance
