#include "serve/response_store.h"

#include <gtest/gtest.h>

namespace qiao::serve {
namespace {

StoredResponse of_bytes(size_t bytes) { return {std::string(bytes, 'x'), {}}; }

TEST(ResponseStoreTest, OwnersDoNotSeeEachOther) {
  ResponseStore store;
  store.put("a", "1", {"response", "items"});
  ASSERT_NE(store.find("a", "1"), nullptr);
  EXPECT_EQ(store.find("a", "1")->response, "response");
  EXPECT_EQ(store.find("a", "1")->items, "items");
  EXPECT_EQ(store.find("b", "1"), nullptr);
  EXPECT_FALSE(store.erase("b", "1"));
  EXPECT_TRUE(store.erase("a", "1"));
  EXPECT_FALSE(store.erase("a", "1"));
  EXPECT_EQ(store.find("a", "1"), nullptr);
  EXPECT_EQ(store.bytes(), 0U);
}

TEST(ResponseStoreTest, TheLeastRecentlyUsedGoesFirst) {
  ResponseStore store(3, 1 << 20);
  for (const char* id : {"1", "2", "3"}) store.put("", id, of_bytes(1));
  EXPECT_NE(store.find("", "1"), nullptr);
  store.put("", "4", of_bytes(1));
  EXPECT_NE(store.find("", "1"), nullptr);
  EXPECT_EQ(store.find("", "2"), nullptr);
  EXPECT_EQ(store.count(), 3U);
}

TEST(ResponseStoreTest, BytesAreBounded) {
  ResponseStore store(1000, 10'000);
  for (int i = 0; i < 100; ++i) {
    store.put("", std::to_string(i), of_bytes(2000));
    EXPECT_LE(store.bytes(), 10'000U);
  }
  EXPECT_GE(store.count(), 3U);
  EXPECT_NE(store.find("", "99"), nullptr);
  // One that is too large by itself drops no others.
  const size_t before = store.count();
  store.put("", "large", of_bytes(20'000));
  EXPECT_EQ(store.find("", "large"), nullptr);
  EXPECT_EQ(store.count(), before);
}

TEST(ResponseStoreTest, PutReplaces) {
  ResponseStore store;
  store.put("", "1", of_bytes(100));
  const size_t bytes = store.bytes();
  store.put("", "1", of_bytes(100));
  EXPECT_EQ(store.bytes(), bytes);
  EXPECT_EQ(store.count(), 1U);
}

TEST(ResponseStoreTest, WithoutRoomNothingIsKept) {
  ResponseStore store;
  store.set_max_bytes(0);
  store.put("", "1", of_bytes(0));
  EXPECT_EQ(store.count(), 0U);
}

TEST(ResponseStoreTest, WhatIsHeldOutlivesItsPlace) {
  ResponseStore store(1, 1 << 20);
  store.put("", "1", {"one", {}});
  const auto held = store.find("", "1");
  store.put("", "2", {"two", {}});
  EXPECT_EQ(store.find("", "1"), nullptr);
  EXPECT_EQ(held->response, "one");
}

}  // namespace
}  // namespace qiao::serve
