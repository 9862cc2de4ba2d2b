#include "infer/page_pool.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace qiao::testing {
namespace {

TEST(PagePoolTest, APageIsFreeAgainAfterItsLastReference) {
  PagePool pool(2);
  const int32_t page = pool.allocate();
  pool.ref(page);
  pool.unref(page);
  EXPECT_EQ(pool.free(), 1);
  pool.unref(page);
  EXPECT_EQ(pool.free(), 2);
  EXPECT_EQ(pool.used(), 0);
}

TEST(PagePoolTest, CountsAgreeWithANaiveModelOverRandomOperations) {
  constexpr uint64_t kSeed = 20261124;
  constexpr int64_t kPages = 13;
  std::mt19937_64 random(kSeed);
  PagePool pool(kPages);
  struct Known {
    int refs = 1;
    bool cached = false;
  };
  std::map<int32_t, Known> model;
  for (int step = 0; step < 20'000; ++step) {
    const uint64_t what = random() % 4;
    if (what == 0 && pool.free() > 0) {
      const int32_t page = pool.allocate();
      ASSERT_TRUE(page >= 0 && page < kPages);
      ASSERT_TRUE(model.emplace(page, Known{}).second)
          << "page " << page << " was given twice, seed " << kSeed;
    } else if (!model.empty()) {
      auto entry = model.begin();
      std::advance(entry, static_cast<std::ptrdiff_t>(random() % model.size()));
      auto& [page, known] = *entry;
      if (what == 1) {
        pool.ref(page);
        ++known.refs;
      } else if (what == 2) {
        known.cached = !known.cached;
        pool.set_cached(page, known.cached);
      } else {
        if (known.cached && known.refs == 1) {
          pool.set_cached(page, false);
          known.cached = false;
        }
        pool.unref(page);
        if (--known.refs == 0) model.erase(entry);
      }
    }
    int64_t cached = 0, idle = 0;
    for (const auto& [page, known] : model) {
      ASSERT_EQ(pool.refs(page), known.refs);
      cached += known.cached ? 1 : 0;
      idle += known.cached && known.refs == 1 ? 1 : 0;
    }
    ASSERT_EQ(pool.free(), kPages - static_cast<int64_t>(model.size()));
    ASSERT_EQ(pool.cached(), cached);
    ASSERT_EQ(pool.idle(), idle);
    ASSERT_EQ(pool.used(), static_cast<int64_t>(model.size()) - idle);
  }
}

}  // namespace
}  // namespace qiao::testing
