#include "base/suggest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace qiao {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(SuggestTest, CountsEdits) {
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);  // the textbook's example
  EXPECT_EQ(edit_distance("chta", "chat"), 1u);       // a swap is one
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("abc", ""), 3u);
  EXPECT_EQ(edit_distance("same", "same"), 0u);
}

TEST(SuggestTest, NamesTheNearestFirst) {
  EXPECT_THAT(near_matches("chta", {"serve", "chart", "chat"}), ElementsAre("chat"));
  EXPECT_THAT(near_matches("QWEN2.5-coder-1.5", {"qwen2.5-coder-1.5b", "smollm2"}),
              ElementsAre("qwen2.5-coder-1.5b"));
  EXPECT_THAT(near_matches("gemma", {"gemma3-270m", "smollm2"}),
              ElementsAre("gemma3-270m"));  // its beginning
  EXPECT_THAT(near_matches("zzz", {"chat", "serve"}), IsEmpty());
  EXPECT_THAT(near_matches(std::string(101, 'a'), {std::string(101, 'a')}), IsEmpty());
}

TEST(SuggestTest, ReadsAsASentence) {
  EXPECT_EQ(did_you_mean("chta", {"chat"}), "; did you mean 'chat'?");
  EXPECT_EQ(did_you_mean("ab", {"aa", "bb"}), "; did you mean 'aa' or 'bb'?");
  EXPECT_EQ(did_you_mean("xyz", {"chat"}), "");
}

}  // namespace
}  // namespace qiao
