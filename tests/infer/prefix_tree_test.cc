#include "infer/prefix_tree.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>
#include <set>
#include <utility>

namespace qiao::testing {
namespace {

PageTables allocate(PagePools& pools, int64_t count) {
  PageTables pages;
  for (int64_t i = 0; i < count; ++i) {
    pages.full.push_back(pools.full.allocate());
    if (pools.slides()) pages.sliding.push_back(pools.sliding.allocate());
  }
  return pages;
}

TEST(PrefixTreeTest, FindsWholePagesOfTheSameTenantOnly) {
  PagePools pools(8, 2);
  PrefixTree tree(pools);
  const std::vector<TokenId> tokens = {1, 2, 3, 4, 5, 6};
  PageTables pages = allocate(pools, 3);
  tree.insert("a", tokens, pages, 0);
  EXPECT_TRUE(tree.match("b", tokens).pages.full.empty());
  const std::vector<TokenId> fewer = {1, 2, 3, 4, 5};  // the third page is not filled
  const PrefixTree::Match two = tree.match("a", fewer);
  EXPECT_EQ(two.pages.full, (std::vector<int32_t>{pages.full[0], pages.full[1]}));
  EXPECT_TRUE(two.pages.sliding.empty());
  EXPECT_EQ(two.reach, 2);
  const PrefixTree::Match third = tree.match("a", tokens, two.pages.full);  // from there on
  EXPECT_EQ(third.pages.full, (std::vector<int32_t>{pages.full[2]}));
  tree.release(third.pages);
  tree.release(two.pages);
  EXPECT_TRUE(
      tree.match("a", std::vector<TokenId>{3, 4}).pages.full.empty());  // known, but not at the beginning
  tree.release(pages);
  EXPECT_EQ(pools.full.used(), 0);
}

TEST(PrefixTreeTest, ASecondCopyIsGivenBackForTheFirst) {
  PagePools pools(4, 2, 4, 3);
  PrefixTree tree(pools);
  const std::vector<TokenId> tokens = {1, 2, 3, 4};
  PageTables first = allocate(pools, 2), second = allocate(pools, 2);
  tree.insert("", tokens, first, 0);
  tree.insert("", tokens, second, 0);
  EXPECT_EQ(second.full, first.full);
  EXPECT_EQ(second.sliding, first.sliding);
  tree.release(first);
  for (const PagePool* pool : {&pools.full, &pools.sliding}) {
    EXPECT_EQ(pool->free(), 2);
    EXPECT_EQ(pool->used(), 2);
  }
  tree.release(second);
  EXPECT_EQ(pools.full.used(), 0);
  EXPECT_EQ(pools.full.cached(), 2);
  tree.clear();
  EXPECT_EQ(pools.full.free(), 4);
  EXPECT_EQ(pools.sliding.free(), 4);
}

// Pages of two tokens; a token sees itself and three before it, which lie in two pages.
TEST(PrefixTreeTest, APrefixIsOfUseWhereItsLastWindowIsWhole) {
  PagePools pools(16, 2, 16, 4);
  PrefixTree tree(pools);
  const std::vector<TokenId> tokens = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  PageTables pages = allocate(pools, 5);
  tree.insert("", tokens, pages, 0);
  const auto found = [&] {
    const PrefixTree::Match match = tree.match("", tokens);
    EXPECT_EQ(match.reach, 5);
    tree.release(match.pages);
    return match.pages;
  };
  PageTables all = found();
  EXPECT_EQ(all.full, pages.full);
  EXPECT_EQ(all.sliding,
            (std::vector<int32_t>{kNoPage, kNoPage, kNoPage, pages.sliding[3], pages.sliding[4]}));
  for (const size_t i : {size_t{0}, size_t{1}, size_t{4}}) {
    tree.leave(std::exchange(pages.sliding[i], kNoPage), false);
    EXPECT_TRUE(tree.evict_sliding());
  }
  EXPECT_FALSE(tree.evict_sliding());  // the others are in use
  // Of pages 0 to 4 two and three are left: the window that ends with page 3 is whole.
  all = found();
  EXPECT_EQ(all.full, (std::vector<int32_t>(pages.full.begin(), pages.full.begin() + 4)));
  EXPECT_EQ(all.sliding, (std::vector<int32_t>{kNoPage, kNoPage, pages.sliding[2], pages.sliding[3]}));
  tree.leave(std::exchange(pages.sliding[2], kNoPage), true);
  EXPECT_TRUE(tree.evict_sliding());
  EXPECT_TRUE(found().full.empty());
  // Who computes it again fills the gaps, and shares what there is.
  PageTables again = allocate(pools, 5);
  const std::vector<int32_t> fresh = again.sliding;
  tree.insert("", tokens, again, 0);
  EXPECT_EQ(again.full, pages.full);
  EXPECT_EQ(again.sliding, (std::vector<int32_t>{fresh[0], fresh[1], fresh[2], pages.sliding[3], fresh[4]}));
  EXPECT_EQ(found().full, pages.full);
  tree.release(again);
  tree.release(pages);
  EXPECT_EQ(pools.full.used() + pools.sliding.used(), 0);
}

TEST(PrefixTreeTest, SlidingPagesThatAreNotWorthKeepingGoFirst) {
  PagePools pools(8, 1, 8, 2);
  PrefixTree tree(pools);
  const std::vector<TokenId> tokens = {1, 2, 3};
  PageTables pages = allocate(pools, 3);
  const std::vector<int32_t> sliding = pages.sliding;
  tree.insert("", tokens, pages, 0);
  tree.leave(std::exchange(pages.sliding[0], kNoPage), true);
  tree.leave(std::exchange(pages.sliding[1], kNoPage), false);
  tree.release(pages);
  for (const size_t next : {size_t{1}, size_t{0}, size_t{2}}) {
    EXPECT_EQ(tree.newest(1000, 1, 1).sliding.back().page, sliding[next]);
    EXPECT_TRUE(tree.evict_sliding());
  }
  EXPECT_EQ(pools.full.cached(), 3);
  EXPECT_EQ(pools.sliding.free(), 8);
}

// A prefix is known or not, has a sliding page or not, and both were last given back at some time: the tree
// in the plainest words.
struct TreeModel {
  using Path = std::pair<std::string, std::vector<TokenId>>;
  struct Use {
    int64_t last = 0;
    int users = 0;
  };
  std::map<Path, Use> full, sliding;

  // The idle prefix given back longest ago that no other prefix continues; null: none.
  const Path* oldest_leaf(size_t page_tokens) const {
    const std::pair<const Path, Use>* best = nullptr;
    for (const auto& entry : full) {
      if (entry.second.users > 0) continue;
      const auto& [tenant, tokens] = entry.first;
      const bool continued = std::any_of(full.begin(), full.end(), [&](const auto& other) {
        return other.first.first == tenant && other.first.second.size() == tokens.size() + page_tokens &&
               std::equal(tokens.begin(), tokens.end(), other.first.second.begin());
      });
      if (!continued && (best == nullptr || entry.second.last < best->second.last)) best = &entry;
    }
    return best == nullptr ? nullptr : &best->first;
  }
  // The idle ones' sliding pages, the one given back longest ago first.
  std::vector<Path> idle_sliding() const {
    std::map<int64_t, Path> by_time;
    for (const auto& [path, use] : sliding) {
      if (use.users > 0) continue;
      EXPECT_TRUE(by_time.emplace(use.last, path).second);
    }
    std::vector<Path> paths;
    for (const auto& [time, path] : by_time) paths.push_back(path);
    return paths;
  }
};

struct TreeCase {
  int64_t page_tokens, window;  // 0: no sliding pages
};

class PrefixTreePropertyTest : public ::testing::TestWithParam<TreeCase> {
 protected:
  static constexpr uint64_t kSeed = 20261125;
  using Path = TreeModel::Path;
  struct Holder {
    std::string tenant;
    std::vector<TokenId> tokens;
    PageTables pages;       // the last one may be partly filled, and is then not in the tree
    size_t full = 0;        // pages in the tree
    size_t first_seen = 0;  // the first page whose sliding page it has
  };

  Path prefix(const Holder& holder, size_t pages) const {
    const auto end = static_cast<std::ptrdiff_t>(pages * size_);
    return {holder.tenant, {holder.tokens.begin(), holder.tokens.begin() + end}};
  }

  // The longest prefix all of whose pages are known and whose last window has all its sliding pages.
  size_t expected_match(const Holder& holder, size_t* reach) const {
    size_t best = 0;
    for (*reach = 0; (*reach + 1) * size_ <= holder.tokens.size(); ++*reach) {
      const size_t pages = *reach + 1;
      if (!model_.full.contains(prefix(holder, pages))) break;
      bool whole = true;
      for (auto i = window_start(pages); i < pages; ++i)
        whole &= model_.sliding.contains(prefix(holder, i + 1));
      if (whole) best = pages;
    }
    return best;
  }
  // By the token: the oldest that the next one sees, and its page.
  size_t window_start(size_t pages) const {
    if (!pools_.slides()) return pages;
    const auto next = static_cast<int64_t>(pages * size_);
    return static_cast<size_t>(std::max<int64_t>(0, next - (GetParam().window - 1))) / size_;
  }

  void evict() {
    const Path* const oldest = model_.oldest_leaf(size_);
    ASSERT_EQ(tree_.evict(), oldest != nullptr);
    if (oldest == nullptr) return;
    const Path gone = *oldest;
    model_.sliding.erase(gone);
    model_.full.erase(gone);
  }
  void evict_sliding() {
    const std::vector<Path> idle = model_.idle_sliding();
    ASSERT_EQ(tree_.evict_sliding(), !idle.empty());
    if (!idle.empty()) model_.sliding.erase(idle.front());
  }

  void come() {
    Holder holder;
    holder.tenant = random_() % 3 == 0 ? "b" : "a";
    for (uint64_t i = 1 + random_() % (6 * size_); i > 0; --i)
      holder.tokens.push_back(static_cast<TokenId>(random_() % 2));
    size_t reach = 0;
    const size_t known = expected_match(holder, &reach);
    const PrefixTree::Match match = tree_.match(holder.tenant, holder.tokens);
    ASSERT_EQ(match.pages.full.size(), known);
    ASSERT_EQ(match.reach, static_cast<int64_t>(reach));
    holder.pages = match.pages;
    holder.full = known;
    holder.first_seen = window_start(known);
    for (size_t i = 0; i < known; ++i) {
      ++model_.full.at(prefix(holder, i + 1)).users;
      if (!pools_.slides()) continue;
      ASSERT_EQ(match.pages.sliding[i] != kNoPage, i >= holder.first_seen);
      if (i >= holder.first_seen) ++model_.sliding.at(prefix(holder, i + 1)).users;
    }
    const size_t all = (holder.tokens.size() + size_ - 1) / size_;
    const auto more = static_cast<int64_t>(all - known);
    if (more > pools_.full.available() || (pools_.slides() && more > pools_.sliding.available()))
      return end(holder);
    while (holder.pages.full.size() < all) {
      if (pools_.full.free() == 0) {
        ASSERT_NO_FATAL_FAILURE(evict());
      }
      holder.pages.full.push_back(pools_.full.allocate());
      if (!pools_.slides()) continue;
      if (pools_.sliding.free() == 0) {
        ASSERT_NO_FATAL_FAILURE(evict_sliding());
      }
      holder.pages.sliding.push_back(pools_.sliding.allocate());
    }
    holder.full = holder.tokens.size() / size_;
    tree_.insert(holder.tenant, holder.tokens, holder.pages, static_cast<int64_t>(known));
    for (size_t n = known + 1; n <= holder.full; ++n) {
      ++model_.full[prefix(holder, n)].users;
      if (pools_.slides()) ++model_.sliding[prefix(holder, n)].users;
    }
    holders_.push_back(std::move(holder));
  }

  void leave(Holder& holder) {
    if (holder.first_seen >= holder.full) return;
    const bool worth = random_() % 2 == 0;
    tree_.leave(std::exchange(holder.pages.sliding[holder.first_seen], kNoPage), worth);
    ++clock_;
    TreeModel::Use& use = model_.sliding.at(prefix(holder, ++holder.first_seen));
    --use.users;
    use.last = worth ? clock_ : -clock_;
  }

  void end(const Holder& holder) {
    tree_.release(holder.pages);
    for (size_t n = holder.full; n > 0; --n) {
      ++clock_;
      const Path path = prefix(holder, n);
      --model_.full.at(path).users;
      model_.full.at(path).last = clock_;
      if (!pools_.slides() || n <= holder.first_seen) continue;
      --model_.sliding.at(path).users;
      model_.sliding.at(path).last = clock_;
    }
  }

  // What the tree holds, and in which order it would go.
  void compare() {
    const PrefixTree::Contents contents = tree_.newest(std::numeric_limits<uint64_t>::max(), 1, 1);
    std::vector<Path> paths;
    for (const PrefixTree::Entry& entry : contents.pages) {
      Path path{std::string(entry.tenant), {}};
      if (entry.parent >= 0) path = paths.at(static_cast<size_t>(entry.parent));
      path.second.insert(path.second.end(), entry.tokens.begin(), entry.tokens.end());
      paths.push_back(path);
    }
    std::set<Path> known;
    for (const auto& [path, use] : model_.full) known.insert(path);
    ASSERT_EQ(std::set<Path>(paths.begin(), paths.end()), known);
    std::set<Path> sliding, known_sliding;
    std::vector<Path> idle;
    for (auto entry = contents.sliding.rbegin(); entry != contents.sliding.rend(); ++entry) {
      const Path& path = paths.at(static_cast<size_t>(entry->beside));
      ASSERT_TRUE(sliding.insert(path).second);
      if (pools_.sliding.refs(entry->page) == 1) idle.push_back(path);
    }
    for (const auto& [path, use] : model_.sliding) known_sliding.insert(path);
    ASSERT_EQ(sliding, known_sliding);
    ASSERT_EQ(idle, model_.idle_sliding());
    const auto idle_full = std::count_if(model_.full.begin(), model_.full.end(),
                                         [](const auto& entry) { return entry.second.users == 0; });
    ASSERT_EQ(pools_.full.cached(), std::ssize(model_.full));
    ASSERT_EQ(pools_.full.idle(), idle_full);
    ASSERT_EQ(pools_.sliding.cached(), std::ssize(model_.sliding));
    ASSERT_EQ(pools_.sliding.idle(), std::ssize(idle));
  }

  const size_t size_ = static_cast<size_t>(GetParam().page_tokens);
  std::mt19937_64 random_{kSeed};
  PagePools pools_{24, GetParam().page_tokens, GetParam().window > 0 ? 14 : 0, GetParam().window};
  PrefixTree tree_{pools_};
  TreeModel model_;
  std::vector<Holder> holders_;
  int64_t clock_ = 0;
};

TEST_P(PrefixTreePropertyTest, AgreesWithANaiveModelOverRandomOperations) {
  for (int step = 0; step < 1500; ++step) {
    SCOPED_TRACE(::testing::Message() << "step " << step << ", seed " << kSeed);
    const uint64_t what = random_() % 8;
    if (what < 3) {
      ASSERT_NO_FATAL_FAILURE(come());
    } else if (what < 5 && !holders_.empty()) {
      const auto at = holders_.begin() + static_cast<std::ptrdiff_t>(random_() % holders_.size());
      end(*at);
      holders_.erase(at);
    } else if (what < 7 && pools_.slides() && !holders_.empty()) {
      leave(holders_[random_() % holders_.size()]);
    } else if (what == 7) {
      ASSERT_NO_FATAL_FAILURE(random_() % 2 == 0 ? evict() : evict_sliding());
    }
    ASSERT_NO_FATAL_FAILURE(compare());
  }
  for (const Holder& holder : holders_) tree_.release(holder.pages);
  EXPECT_EQ(pools_.full.used() + pools_.sliding.used(), 0);
  tree_.clear();
  EXPECT_EQ(pools_.full.free(), pools_.full.total());
  EXPECT_EQ(pools_.sliding.free(), pools_.sliding.total());
}

INSTANTIATE_TEST_SUITE_P(PageSizes, PrefixTreePropertyTest,
                         ::testing::Values(TreeCase{1, 0}, TreeCase{2, 0}, TreeCase{3, 0}, TreeCase{1, 1},
                                           TreeCase{1, 3}, TreeCase{2, 3}, TreeCase{2, 5}, TreeCase{3, 2},
                                           TreeCase{3, 9}));

}  // namespace
}  // namespace qiao::testing
