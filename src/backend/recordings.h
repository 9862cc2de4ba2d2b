// Runs of ops that come again with the same shapes and addresses, kept as the chip keeps them
// (Backend::repeat): what a chip with launch graphs is then given is one launch in place of many.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "backend/backend.h"

namespace qiao {

// Key: all that the ops follow from. Result: what they leave to the caller, the same each time.
template <class Key, class Result>
class Recordings {
 public:
  // Some hundred KiB of a device each; the one that was not used longest makes way.
  static constexpr size_t kMost = 64;

  Result run(Backend& backend, const Key& key, const std::function<Result()>& work) {
    auto at = kept_.find(key);
    if (at == kept_.end()) {
      if (kept_.size() == kMost) {
        kept_.erase(std::min_element(kept_.begin(), kept_.end(), [](const auto& a, const auto& b) {
          return a.second.used < b.second.used;
        }));
      }
      at = kept_.try_emplace(key).first;
    }
    Kept& kept = at->second;
    kept.used = ++uses_;
    backend.repeat(kept.recording, [&] { kept.result = work(); });
    return kept.result;
  }
  void clear() { kept_.clear(); }

 private:
  struct Kept {
    std::unique_ptr<Recording> recording;
    Result result;
    uint64_t used = 0;
  };
  std::map<Key, Kept> kept_;
  uint64_t uses_ = 0;
};

}  // namespace qiao
