// Which pages of a KvCache are in use, and by how many. Holds no keys or values itself. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace qiao {

class PagePool {
 public:
  explicit PagePool(int64_t pages);

  // A free page, with one reference. Required: free() > 0.
  int32_t allocate();
  void ref(int32_t page);
  // Drops a reference; the page is free after the last.
  void unref(int32_t page);
  int32_t refs(int32_t page) const { return pages_[static_cast<size_t>(page)].refs; }

  // Whether one of the page's references is the prefix tree's.
  void set_cached(int32_t page, bool cached);

  int64_t total() const { return static_cast<int64_t>(pages_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int64_t cached() const { return cached_; }  // in the tree
  int64_t idle() const { return idle_; }      // in the tree and nowhere else: can be evicted
  int64_t used() const { return total() - free() - idle_; }
  int64_t available() const { return free() + idle_; }

 private:
  struct Page {
    int32_t refs = 0;
    bool cached = false;
  };
  bool is_idle(int32_t page) const;
  std::vector<Page> pages_;
  std::vector<int32_t> free_;  // the last one freed is the next one given: its memory is warm
  int64_t cached_ = 0, idle_ = 0;
};

constexpr int32_t kNoPage = -1;

// A sequence's pages, one table for each group of layers (KvCache): entry i has tokens [i * page_tokens,
// (i + 1) * page_tokens). `sliding` has no more entries than `full`, none where there is no such group, and
// kNoPage for pages that lie before the window.
struct PageTables {
  std::vector<int32_t> full, sliding;
};

// The pages of both groups. Whoever uses a sliding page uses the full page of the same tokens, and no two
// sliding pages in use go with one full page: where there are as many of both, a sliding page is always had.
struct PagePools {
  // sliding_pages 0: there is no such group.
  PagePools(int64_t full_pages, int64_t tokens_a_page, int64_t sliding_pages = 0, int64_t window_tokens = 0)
      : full(full_pages), sliding(sliding_pages), page_tokens(tokens_a_page), window(window_tokens) {}

  PagePool full, sliding;
  const int64_t page_tokens;
  const int64_t window;  // a token of a sliding layer sees so many, itself among them

  bool slides() const { return sliding.total() > 0; }
  int64_t pages_for(int64_t tokens) const { return (tokens + page_tokens - 1) / page_tokens; }
  // The first page of which the token behind `pages` full ones sees anything in a sliding layer.
  int64_t window_start(int64_t pages) const {
    return std::max<int64_t>(0, pages * page_tokens - window + 1) / page_tokens;
  }
  // Sliding pages that `slots` sequences hold at most while the steps that have not ended compute at most
  // step_tokens in all: each one's window, back from its last full page, and what these add behind that.
  static int64_t window_pages(int64_t window, int64_t page_tokens, int64_t slots, int64_t step_tokens) {
    const auto pages = [&](int64_t tokens) { return (tokens + page_tokens - 1) / page_tokens; };
    return slots * (pages(window) + 2) + pages(step_tokens);
  }
};

}  // namespace qiao
