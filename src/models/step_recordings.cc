#include "models/step_recordings.h"

#include <algorithm>

namespace qiao {

Decoder::Outputs StepRecordings::run(Backend& backend, const Key& key,
                                     const std::function<Decoder::Outputs()>& step) {
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
  backend.repeat(kept.recording, [&] { kept.outputs = step(); });
  return kept.outputs;
}

}  // namespace qiao
