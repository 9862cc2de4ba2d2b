#include "infer/draft_pace.h"

#include <gtest/gtest.h>

namespace qiao::testing {
namespace {

TEST(DraftPaceTest, GuessesMoreWhereGuessesAreRightAndTheDraftIsCheap) {
  DraftPace good, dear;
  for (int i = 0; i < 30; ++i) {
    good.judge(8, 8);
    dear.judge(8, 8);
  }
  EXPECT_EQ(good.wish(100, 8, 0.01), 8);
  // Two tokens of a step that costs 1 + 0.9 + 0.2 are fewer than one of a step alone.
  EXPECT_EQ(dear.wish(100, 8, 0.9), 0);
}

TEST(DraftPaceTest, PausesWhereNothingIsRightAndTriesAgainLater) {
  DraftPace pace;
  int64_t tokens = 10;
  for (int i = 0; i < 40; ++i) {
    if (pace.wish(tokens, 8, 0.1) == 0) break;
    pace.judge(pace.wish(tokens, 8, 0.1), 0);
    ++tokens;
  }
  ASSERT_EQ(pace.wish(tokens, 8, 0.1), 0);
  EXPECT_EQ(pace.wish(tokens + 63, 8, 0.1), 0);
  EXPECT_GT(pace.wish(tokens + 64, 8, 0.1), 0);
  pace.judge(4, 0);
  EXPECT_EQ(pace.wish(tokens + 65, 8, 0.1), 0);  // one try, and it pauses again
}

TEST(DraftPaceTest, StaysWithinWhatIsWanted) {
  DraftPace pace;
  EXPECT_EQ(pace.wish(10, 1, 0.0), 1);
  EXPECT_EQ(pace.wish(10, 0, 0.0), 0);
  EXPECT_EQ(pace.wish(10, -3, 0.0), 0);
}

}  // namespace
}  // namespace qiao::testing
