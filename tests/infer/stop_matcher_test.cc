#include "infer/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace qiao {
namespace {

TEST(StopMatcherTest, HoldsBackWhatMayBecomeAStop) {
  StopMatcher stops({"</s>"});
  EXPECT_EQ(stops.push("hello <"), "hello ");
  EXPECT_EQ(stops.push("/"), "");
  EXPECT_EQ(stops.push("b>"), "</b>");
  EXPECT_FALSE(stops.stopped());
  EXPECT_EQ(stops.push("bye</"), "bye");
  EXPECT_EQ(stops.push("s> never shown"), "");
  EXPECT_TRUE(stops.stopped());
  EXPECT_EQ(stops.matched(), "</s>");
  EXPECT_EQ(stops.push("more"), "");
  EXPECT_EQ(stops.finish(), "");
}

TEST(StopMatcherTest, GivesBackWhatWasHeldAtTheEnd) {
  StopMatcher stops({"END", "\n\n"});
  EXPECT_EQ(stops.push("a\n"), "a");
  EXPECT_EQ(stops.push("EN"), "\n");
  EXPECT_EQ(stops.finish(), "EN");
}

TEST(StopMatcherTest, TheEarliestStopWins) {
  StopMatcher stops({"cd", "abcx", "b"});
  EXPECT_EQ(stops.push("abcd"), "a");
  EXPECT_EQ(stops.matched(), "b");
}

TEST(StopMatcherTest, WithoutStopsNothingIsHeld) {
  StopMatcher stops({""});
  EXPECT_EQ(stops.push("x"), "x");
  EXPECT_FALSE(stops.stopped());
}

// Whatever the cuts, the text shown is the whole text up to the first stop string.
TEST(StopMatcherTest, AnyCutOfTheTextGivesTheSame) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int i = 0; i < 30; ++i) text += "ab"[random() % 2];
    const std::vector<std::string> stop_strings = {"aabb", "babab"};
    size_t first = text.size();
    for (const std::string& stop : stop_strings) first = std::min(first, text.find(stop));
    StopMatcher stops(stop_strings);
    std::string shown;
    for (size_t at = 0; at < text.size();) {
      const size_t length = 1 + random() % 5;
      shown += stops.push(text.substr(at, length));
      at += length;
    }
    shown += stops.finish();
    ASSERT_EQ(shown, text.substr(0, first)) << text;
  }
}

}  // namespace
}  // namespace qiao
