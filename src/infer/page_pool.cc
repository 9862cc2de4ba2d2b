#include "infer/page_pool.h"

#include "base/error.h"

namespace qiao {

PagePool::PagePool(int64_t pages) : pages_(static_cast<size_t>(pages)) {
  QIAO_ASSERT(pages >= 0 && pages <= INT32_MAX);
  free_.reserve(pages_.size());
  for (int64_t page = pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

bool PagePool::is_idle(int32_t page) const {
  const Page& entry = pages_[static_cast<size_t>(page)];
  return entry.cached && entry.refs == 1;
}

int32_t PagePool::allocate() {
  QIAO_ASSERT(!free_.empty());
  const int32_t page = free_.back();
  free_.pop_back();
  pages_[static_cast<size_t>(page)].refs = 1;
  return page;
}

void PagePool::ref(int32_t page) {
  QIAO_ASSERT(refs(page) > 0);
  idle_ -= is_idle(page) ? 1 : 0;
  ++pages_[static_cast<size_t>(page)].refs;
}

void PagePool::unref(int32_t page) {
  Page& entry = pages_[static_cast<size_t>(page)];
  QIAO_ASSERT(entry.refs > (entry.cached ? 1 : 0));  // the tree's own goes after set_cached(page, false)
  if (--entry.refs == 0) free_.push_back(page);
  idle_ += is_idle(page) ? 1 : 0;
}

void PagePool::set_cached(int32_t page, bool cached) {
  Page& entry = pages_[static_cast<size_t>(page)];
  QIAO_ASSERT(entry.refs > 0 && entry.cached != cached);
  idle_ -= is_idle(page) ? 1 : 0;
  entry.cached = cached;
  cached_ += cached ? 1 : -1;
  idle_ += is_idle(page) ? 1 : 0;
}

}  // namespace qiao
