#include "base/units.h"

#include <gtest/gtest.h>

namespace qiao {
namespace {

TEST(UnitsTest, KeepsThreeDigits) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1000), "1.00 kB");
  EXPECT_EQ(format_bytes(92'900'000), "92.9 MB");
  EXPECT_EQ(format_bytes(999'499), "999 kB");
  EXPECT_EQ(format_bytes(999'500), "1.00 MB");  // not 1000 kB
  EXPECT_EQ(format_bytes(~uint64_t{0}), "18.4 EB");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(9'994), "9.99 k");
  EXPECT_EQ(format_count(9'996), "10.0 k");
  EXPECT_EQ(format_count(49'152), "49.2 k");
  EXPECT_EQ(format_count(134'515'008), "135 M");
  EXPECT_EQ(format_count(1'543'714'304), "1.54 G");
}

}  // namespace
}  // namespace qiao
