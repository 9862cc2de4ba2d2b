#include "infer/prompt_lookup.h"

#include <gtest/gtest.h>

namespace qiao::testing {
namespace {

using Tokens = std::vector<TokenId>;

Tokens proposed(PromptLookup& lookup, const Tokens& tokens, int64_t most) {
  Tokens draft = {99};  // whatever it held before
  lookup.propose(tokens, most, draft);
  return draft;
}

TEST(PromptLookupTest, DraftsWhatFollowedTheLastTimeTheSameTokensCame) {
  PromptLookup lookup;
  EXPECT_EQ(proposed(lookup, {1, 2, 3, 4, 5, 6, 7, 1, 2, 3}, 4),
            (Tokens{4, 5, 6}));  // three of four at first
  EXPECT_EQ(proposed(lookup, {1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 8, 9, 1, 2, 3}, 2), (Tokens{8, 9}));
}

TEST(PromptLookupTest, DraftsNothingWhereNothingRepeatsOrNothingIsWanted) {
  PromptLookup lookup;
  EXPECT_EQ(proposed(lookup, {1, 2}, 4), Tokens());
  EXPECT_EQ(proposed(lookup, {1, 2, 3}, 4), Tokens());
  EXPECT_EQ(proposed(lookup, {1, 2, 3, 4, 5}, 4), Tokens());
  EXPECT_EQ(proposed(lookup, {1, 2, 3, 4, 5, 2, 3, 4}, 0), Tokens());
}

TEST(PromptLookupTest, AShortPeriodGoesOnInTheDraft) {
  PromptLookup lookup;
  EXPECT_EQ(proposed(lookup, {1, 2, 1, 2, 1, 2}, 8), (Tokens{1, 2, 1, 2, 1, 2}));
  lookup.judge(6, 6);
  lookup.judge(6, 6);
  EXPECT_EQ(proposed(lookup, {1, 2, 1, 2, 1, 2}, 8).size(), 8u);
}

TEST(PromptLookupTest, PausesWhereItsDraftsAreWrongAndTriesAgain) {
  PromptLookup lookup;
  Tokens tokens = {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4};
  const auto drafts = [&] {
    const Tokens draft = proposed(lookup, tokens, 4);
    lookup.judge(static_cast<int64_t>(draft.size()), 0);
    tokens.push_back(tokens[tokens.size() - 4]);
    return !draft.empty();
  };
  int tried = 0;
  for (int i = 0; i < 200; ++i) tried += drafts() ? 1 : 0;
  EXPECT_GE(tried, 3);
  EXPECT_LE(tried, 12);
}

}  // namespace
}  // namespace qiao::testing
