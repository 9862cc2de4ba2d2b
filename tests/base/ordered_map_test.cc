#include "base/ordered_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace qiao {
namespace {

using Map = OrderedMap<std::string, int>;

std::vector<std::string> keys_of(const Map& map) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : map) keys.push_back(key);
  return keys;
}

TEST(OrderedMapTest, KeepsTheOrderOfInsertion) {
  Map map{{"b", 1}, {"a", 2}};
  map["c"] = 3;
  map["a"] = 4;
  EXPECT_EQ(keys_of(map), (std::vector<std::string>{"b", "a", "c"}));
  EXPECT_EQ(map.at("a"), 4);
  EXPECT_THROW(map.at("d"), std::out_of_range);
  EXPECT_FALSE(map.emplace("b", 9).second);
  EXPECT_EQ(map.at("b"), 1);
  EXPECT_EQ(map.count("d"), 0u);
  EXPECT_EQ(map.erase("b"), 1u);
  EXPECT_EQ(map.erase("b"), 0u);
  EXPECT_EQ(keys_of(map), (std::vector<std::string>{"a", "c"}));
  map.clear();
  EXPECT_TRUE(map.empty());
}

// The same steps on a plain list of pairs, over sizes with and without the index.
TEST(OrderedMapTest, AgreesWithALinearListUnderRandomSteps) {
  std::mt19937 random(3);
  for (int run = 0; run < 20; ++run) {
    Map map;
    std::vector<std::pair<std::string, int>> list;
    const auto in_list = [&](const std::string& key) {
      return std::find_if(list.begin(), list.end(), [&](const auto& entry) { return entry.first == key; });
    };
    const uint32_t names = run % 2 == 0 ? 24 : 400;
    for (int step = 0; step < 1500; ++step) {
      const std::string key(1 + random() % 3, static_cast<char>('a' + random() % 5));
      const std::string name = key + std::to_string(random() % names);
      const auto found = in_list(name);
      ASSERT_EQ(map.find(name) == map.end(), found == list.end());
      if (random() % 4 == 0) {
        ASSERT_EQ(map.erase(name), found == list.end() ? 0u : 1u);
        if (found != list.end()) list.erase(found);
      } else {
        map[name] = step;
        if (found == list.end()) {
          list.emplace_back(name, step);
        } else {
          found->second = step;
        }
      }
      if (step % 500 == 0) {
        Map copy = map;  // with an index of its own
        map.clear();
        map = std::move(copy);
      }
    }
    ASSERT_EQ((std::vector<std::pair<std::string, int>>(map.begin(), map.end())), list);
  }
}

TEST(OrderedMapTest, ErasesRangesAndCompares) {
  Map map;
  for (int i = 0; i < 100; ++i) map[std::to_string(i)] = i;
  map.erase(map.begin() + 10, map.begin() + 90);
  EXPECT_EQ(map.size(), 20u);
  EXPECT_EQ(map.count("50"), 0u);
  EXPECT_EQ(map.at("95"), 95);
  EXPECT_EQ((Map{{"a", 1}, {"b", 2}}), (Map{{"a", 1}, {"b", 2}}));
  EXPECT_FALSE((Map{{"a", 1}, {"b", 2}}) == (Map{{"b", 2}, {"a", 1}}));
  EXPECT_FALSE((Map{{"a", 1}}) < (Map{{"a", 2}}));  // objects are equal or not, in no order
}

TEST(OrderedMapTest, HashesSpread) {
  std::set<uint64_t> hashes;
  std::set<uint64_t> low_bits;
  for (int i = 0; i < 4096; ++i) {
    hashes.insert(keyed_hash("token" + std::to_string(i)));
    low_bits.insert(keyed_hash("token" + std::to_string(i)) % 4096);
  }
  EXPECT_EQ(hashes.size(), 4096u);
  EXPECT_GT(low_bits.size(), 2300u);  // 1 - 1/e of 4096 is 2589; under 2300 is over ten deviations off
  EXPECT_NE(keyed_hash(""), keyed_hash(std::string_view("\0", 1)));
  EXPECT_NE(keyed_hash(std::string_view("a\0", 2)), keyed_hash("a"));
}

}  // namespace
}  // namespace qiao
