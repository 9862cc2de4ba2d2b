#include "serve/response_store.h"

namespace qiao::serve {
namespace {

// What an entry costs beside its texts: nodes, keys, counters.
constexpr size_t kEntryBytes = 512;

}  // namespace

void ResponseStore::set_max_bytes(size_t max_bytes) {
  const std::lock_guard lock(mutex_);
  max_bytes_ = max_bytes;
}

void ResponseStore::put(std::string_view owner, std::string_view id, StoredResponse response) {
  const size_t size = response.bytes() + kEntryBytes;
  const std::lock_guard lock(mutex_);
  Key key(owner, id);
  if (const auto old = index_.find(key); old != index_.end()) erase_locked(old->second);
  if (size > max_bytes_ || max_count_ == 0) return;
  while (!entries_.empty() && (entries_.size() >= max_count_ || bytes_ + size > max_bytes_))
    erase_locked(std::prev(entries_.end()));
  entries_.push_front({key, std::make_shared<const StoredResponse>(std::move(response))});
  index_.emplace(std::move(key), entries_.begin());
  bytes_ += size;
}

std::shared_ptr<const StoredResponse> ResponseStore::find(std::string_view owner, std::string_view id) {
  const std::lock_guard lock(mutex_);
  const auto found = index_.find(Key(owner, id));
  if (found == index_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->response;
}

bool ResponseStore::erase(std::string_view owner, std::string_view id) {
  const std::lock_guard lock(mutex_);
  const auto found = index_.find(Key(owner, id));
  if (found == index_.end()) return false;
  erase_locked(found->second);
  return true;
}

void ResponseStore::erase_locked(std::list<Entry>::iterator entry) {
  bytes_ -= entry->response->bytes() + kEntryBytes;
  index_.erase(entry->key);
  entries_.erase(entry);
}

size_t ResponseStore::count() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

size_t ResponseStore::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace qiao::serve
