// Which pages of a KvCache are in use, and by how many. Holds no keys or values itself. Not thread-safe.
#pragma once

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

}  // namespace qiao
