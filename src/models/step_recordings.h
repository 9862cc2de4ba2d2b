// Steps of a decoder that come again with the same shapes and addresses, kept as the chip keeps them
// (Backend::repeat): what a chip with launch graphs is then given is one launch in place of some hundred.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "models/decoder.h"

namespace qiao {

class StepRecordings {
 public:
  // All that a step's ops follow from, beside what the workspace that owns this fixes.
  struct Key {
    uint64_t cache = 0;                             // KvCache::serial
    int64_t sequences = 0, pages = 0, outputs = 0;  // a token of each sequence, M of its page table, O
    bool want_logits = false;
    auto operator<=>(const Key&) const =
        default;  // NOLINT(modernize-use-nullptr): it takes the default for a 0
  };
  // Some hundred KiB of a device each; the one that was not used longest makes way.
  static constexpr size_t kMost = 64;

  Decoder::Outputs run(Backend& backend, const Key& key, const std::function<Decoder::Outputs()>& step);

 private:
  struct Kept {
    std::unique_ptr<Recording> recording;
    Decoder::Outputs outputs;
    uint64_t used = 0;
  };
  std::map<Key, Kept> kept_;
  uint64_t uses_ = 0;
};

}  // namespace qiao
