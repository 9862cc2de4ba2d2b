// Answers of /v1/responses that clients may come back to, in memory: bounded, the least recently used go
// first.
#pragma once

#include <cstddef>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace qiao::serve {

struct StoredResponse {
  std::string response;  // JSON: the response object
  std::string items;     // JSON: a list of all that it was made from, earlier responses' items too
  size_t bytes() const { return response.size() + items.size(); }
};

// Safe from any thread. What one owner (an API key) stored, no other sees.
class ResponseStore {
 public:
  explicit ResponseStore(size_t max_count = 4096, size_t max_bytes = size_t{64} << 20)
      : max_count_(max_count), max_bytes_(max_bytes) {}
  // For what is put from now on. 0: nothing is kept.
  void set_max_bytes(size_t max_bytes);

  // Drops others until it fits; itself where it alone is over the limit.
  void put(std::string_view owner, std::string_view id, StoredResponse response);
  // Null where there is none (any more).
  std::shared_ptr<const StoredResponse> find(std::string_view owner, std::string_view id);
  bool erase(std::string_view owner, std::string_view id);
  size_t count() const;
  size_t bytes() const;

 private:
  using Key = std::pair<std::string, std::string>;  // owner, id
  struct Entry {
    Key key;
    std::shared_ptr<const StoredResponse> response;
  };
  void erase_locked(std::list<Entry>::iterator entry);

  const size_t max_count_;
  size_t max_bytes_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // the most recently used first
  std::map<Key, std::list<Entry>::iterator> index_;
  size_t bytes_ = 0;
};

}  // namespace qiao::serve
