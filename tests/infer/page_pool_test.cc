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

// Token by token: whatever a step computes, the pages from the window's start on have every key that it sees,
// and one sequence never holds more than window_pages.
TEST(PagePoolsTest, AWindowsPagesHoldAllThatAStepSees) {
  for (const int64_t window : {1, 2, 7, 8, 9, 30}) {
    for (const int64_t page_tokens : {1, 2, 4, 7, 16}) {
      const PagePools pools(100, page_tokens, 100, window);
      for (int64_t computed = 0; computed < 80; ++computed) {
        for (const int64_t count : {1, 2, 5, 16}) {
          const int64_t start = pools.window_start(computed / page_tokens);
          EXPECT_LE(start * page_tokens, std::max<int64_t>(0, computed - window + 1));
          EXPECT_LE(pools.pages_for(computed + count) - start,
                    PagePools::window_pages(window, page_tokens, 1, count));
        }
      }
      // The window behind a full page: one page less would not do.
      for (int64_t pages = 0; pages < 20; ++pages) {
        const int64_t oldest = pages * page_tokens - window + 1;  // that the next token sees
        EXPECT_GT((pools.window_start(pages) + 1) * page_tokens, oldest);
      }
    }
  }
}

}  // namespace
}  // namespace qiao::testing
