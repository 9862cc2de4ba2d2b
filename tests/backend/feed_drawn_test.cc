#include "backend/ops/feed_drawn.h"

#include "backend/op_test.h"

namespace qiao {
namespace {

class FeedDrawnTest : public ::testing::Test {
 protected:
  std::unique_ptr<Backend> chip_ = reference_chip();
  Ints ids_{{3}, {70, -1, 90}};
  Ints from_{{4}, {2, -1, 1, 0}};
  Ints tokens_{{4}, {11, 12, 13, 14}};
  FeedDrawn op_{.ids = ids_, .from = from_, .tokens = tokens_};
};

TEST_F(FeedDrawnTest, PutsWhatWasDrawnInItsPlaceAndLeavesTheRest) {
  chip_->feed_drawn(op_);
  EXPECT_EQ(tokens_.list(), (std::vector<int32_t>{90, 12, 0, 70}));
}

TEST_F(FeedDrawnTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  FeedDrawn op = op_;
  op.from = ids_;
  EXPECT_EQ(refusal(op), "feed_drawn: from is I32[3], expected I32[4]");
  op = op_, op.tokens = from_;
  EXPECT_EQ(refusal(op), "feed_drawn: tokens I32[4] overlaps from I32[4]");
}

}  // namespace
}  // namespace qiao
