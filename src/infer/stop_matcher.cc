#include "infer/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace qiao {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
  for (const std::string& stop : stops_) longest_ = std::max(longest_, stop.size());
}

std::string StopMatcher::push(std::string_view text) {
  if (stopped_) return {};
  if (stops_.empty()) return std::string(text);
  // held_ holds no whole stop string: a match must end in the new text.
  held_ += text;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at < first || (at == first && at != std::string::npos && stop.size() > matched_.size())) {
      first = at;
      matched_ = stop;
    }
  }
  if (first != std::string::npos) {
    stopped_ = true;
    return std::exchange(held_, {}).substr(0, first);
  }
  // Hold back the longest suffix that begins a stop string.
  size_t keep = std::min(held_.size(), longest_ - 1);
  for (; keep > 0; --keep) {
    const std::string_view suffix = std::string_view(held_).substr(held_.size() - keep);
    if (std::any_of(stops_.begin(), stops_.end(),
                    [&](const std::string& stop) { return stop.starts_with(suffix); })) {
      break;
    }
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopMatcher::finish() { return stopped_ ? std::string() : std::exchange(held_, {}); }

}  // namespace qiao
