#include "infer/prefix_tree.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace qiao::testing {
namespace {

std::vector<int32_t> allocate(PagePool& pool, int64_t count) {
  std::vector<int32_t> pages;
  for (int64_t i = 0; i < count; ++i) pages.push_back(pool.allocate());
  return pages;
}

TEST(PrefixTreeTest, FindsWholePagesOfTheSameTenantOnly) {
  PagePool pool(8);
  PrefixTree tree(pool, 2);
  const std::vector<TokenId> tokens = {1, 2, 3, 4, 5, 6};
  std::vector<int32_t> pages = allocate(pool, 3);
  tree.insert("a", tokens, pages, 0);
  std::vector<int32_t> found;
  tree.match("b", tokens, found);
  EXPECT_TRUE(found.empty());
  tree.match("a", std::vector<TokenId>{1, 2, 3, 4, 5}, found);  // the third page is not filled
  EXPECT_EQ(found, (std::vector<int32_t>{pages[0], pages[1]}));
  tree.match("a", tokens, found);  // from there on
  EXPECT_EQ(found, pages);
  tree.release(found);
  found.clear();
  tree.match("a", std::vector<TokenId>{3, 4}, found);  // known, but not at the beginning
  EXPECT_TRUE(found.empty());
  tree.release(pages);
}

TEST(PrefixTreeTest, ASecondCopyIsGivenBackForTheFirst) {
  PagePool pool(4);
  PrefixTree tree(pool, 2);
  const std::vector<TokenId> tokens = {1, 2, 3, 4};
  std::vector<int32_t> first = allocate(pool, 2), second = allocate(pool, 2);
  tree.insert("", tokens, first, 0);
  tree.insert("", tokens, second, 0);
  EXPECT_EQ(second, first);
  EXPECT_EQ(pool.free(), 2);
  tree.release(first);
  EXPECT_EQ(pool.used(), 2);
  tree.release(second);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.cached(), 2);
  tree.clear();
  EXPECT_EQ(pool.free(), 4);
}

// A prefix is known or not, and was last given back at some time: the tree in the plainest words.
class TreeModel {
 public:
  using Path = std::pair<std::string, std::vector<TokenId>>;
  struct Entry {
    int64_t last_release = 0;
    int users = 0;
  };
  std::map<Path, Entry> entries;

  // The idle prefix given back longest ago that no other prefix continues; null: none.
  const Path* oldest_leaf(size_t page_tokens) const {
    const std::pair<const Path, Entry>* best = nullptr;
    for (const auto& entry : entries) {
      if (entry.second.users > 0) continue;
      const auto& [tenant, tokens] = entry.first;
      const bool continued = std::any_of(entries.begin(), entries.end(), [&](const auto& other) {
        return other.first.first == tenant && other.first.second.size() == tokens.size() + page_tokens &&
               std::equal(tokens.begin(), tokens.end(), other.first.second.begin());
      });
      if (!continued && (best == nullptr || entry.second.last_release < best->second.last_release))
        best = &entry;
    }
    return best == nullptr ? nullptr : &best->first;
  }
};

class PrefixTreePropertyTest : public ::testing::TestWithParam<int64_t> {};

TEST_P(PrefixTreePropertyTest, AgreesWithANaiveModelOverRandomOperations) {
  const int64_t page_tokens = GetParam();
  const auto size = static_cast<size_t>(page_tokens);
  constexpr uint64_t kSeed = 20261125;
  std::mt19937_64 random(kSeed);
  PagePool pool(24);
  PrefixTree tree(pool, page_tokens);
  TreeModel model;
  struct Holder {
    std::string tenant;
    std::vector<TokenId> tokens;
    std::vector<int32_t> pages;  // the last one may be partly filled, and is then not in the tree
  };
  std::vector<Holder> holders;
  int64_t clock = 0;
  const auto prefix = [&](const Holder& holder, size_t pages) {
    return TreeModel::Path{
        holder.tenant,
        {holder.tokens.begin(), holder.tokens.begin() + static_cast<std::ptrdiff_t>(pages * size)}};
  };
  const auto evict = [&] {
    const TreeModel::Path* const expected = model.oldest_leaf(size);
    ASSERT_EQ(tree.evict(), expected != nullptr);
    if (expected == nullptr) return;
    const TreeModel::Path gone = *expected;
    model.entries.erase(gone);
    std::vector<int32_t> found;
    tree.match(gone.first, gone.second, found);
    EXPECT_EQ(found.size(), gone.second.size() / size - 1) << "another page was evicted, seed " << kSeed;
    // A look-up is a use: give back in the model what was given back in the tree.
    tree.release(found);
    ++clock;
    for (size_t n = 1; n <= found.size(); ++n) {
      model.entries
          .at({gone.first,
               {gone.second.begin(), gone.second.begin() + static_cast<std::ptrdiff_t>(n * size)}})
          .last_release = clock;
    }
  };
  for (int step = 0; step < 2000; ++step) {
    const uint64_t what = random() % 5;
    if (what < 2) {  // a request comes: finds what is known, computes and shares the rest
      Holder holder;
      holder.tenant = random() % 3 == 0 ? "b" : "a";
      for (uint64_t i = 1 + random() % (6 * size); i > 0; --i)
        holder.tokens.push_back(static_cast<TokenId>(random() % 2));
      const size_t full = holder.tokens.size() / size;
      size_t known = 0;
      while (known < full && model.entries.contains(prefix(holder, known + 1))) ++known;
      tree.match(holder.tenant, holder.tokens, holder.pages);
      ASSERT_EQ(holder.pages.size(), known) << "step " << step << ", seed " << kSeed;
      for (size_t n = 1; n <= known; ++n) ++model.entries.at(prefix(holder, n)).users;
      const size_t all = (holder.tokens.size() + size - 1) / size;
      if (static_cast<int64_t>(all - known) > pool.available()) {
        tree.release(holder.pages);
        ++clock;
        for (size_t n = 1; n <= known; ++n) {
          TreeModel::Entry& entry = model.entries.at(prefix(holder, n));
          --entry.users;
          entry.last_release = clock;
        }
        continue;
      }
      while (holder.pages.size() < all) {
        if (pool.free() == 0) {
          ASSERT_NO_FATAL_FAILURE(evict());
        }
        holder.pages.push_back(pool.allocate());
      }
      tree.insert(holder.tenant, holder.tokens, std::span(holder.pages).first(full),
                  static_cast<int64_t>(known));
      for (size_t n = known + 1; n <= full; ++n) ++model.entries[prefix(holder, n)].users;
      holders.push_back(std::move(holder));
    } else if (what < 4 && !holders.empty()) {  // one ends
      const size_t index = random() % holders.size();
      const Holder holder = std::move(holders[index]);
      holders.erase(holders.begin() + static_cast<std::ptrdiff_t>(index));
      tree.release(holder.pages);
      ++clock;
      for (size_t n = 1; n <= holder.tokens.size() / size; ++n) {
        TreeModel::Entry& entry = model.entries.at(prefix(holder, n));
        --entry.users;
        entry.last_release = clock;
      }
    } else if (what == 4) {
      ASSERT_NO_FATAL_FAILURE(evict());
    }
    const auto idle = std::count_if(model.entries.begin(), model.entries.end(),
                                    [](const auto& entry) { return entry.second.users == 0; });
    ASSERT_EQ(pool.cached(), static_cast<int64_t>(model.entries.size())) << "step " << step;
    ASSERT_EQ(pool.idle(), idle) << "step " << step;
  }
  for (const Holder& holder : holders) tree.release(holder.pages);
  EXPECT_EQ(pool.used(), 0);
  tree.clear();
  EXPECT_EQ(pool.free(), pool.total());
}

INSTANTIATE_TEST_SUITE_P(PageSizes, PrefixTreePropertyTest, ::testing::Values(1, 2, 3));

}  // namespace
}  // namespace qiao::testing
