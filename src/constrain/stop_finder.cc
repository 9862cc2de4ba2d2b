#include "constrain/stop_finder.h"

#include <algorithm>
#include <deque>

#include "base/error.h"
#include "text/utf8.h"

namespace qiao::constrain {

StopFinder::StopFinder(const std::vector<std::string>& texts, std::string_view where) {
  size_t bytes = 0;
  for (const std::string& text : texts) {
    if (text.empty()) throw_error(ErrorKind::kInvalidInput, "{}: a text that ends free text is empty", where);
    if (!tokenization::utf8_valid(text)) {
      throw_error(ErrorKind::kInvalidInput, "{}: a text that ends free text is not valid UTF-8", where);
    }
    bytes += text.size();
  }
  if (bytes > kMaxBytes) {
    throw_error(ErrorKind::kTooLarge, "{}: the texts that end free text have over {} bytes", where,
                kMaxBytes);
  }
  std::vector<std::string> sorted = texts;
  std::sort(sorted.begin(), sorted.end());
  for (const std::string& text : sorted) signature_ += fmt::format("{}:{}", text.size(), text);
  // The tree of the texts; kStart stands for "no child", since no edge leads back to it.
  const auto add_state = [&](uint16_t depth) {
    next_.emplace_back().fill(kStart);
    depths_.push_back(depth);
    return static_cast<uint16_t>(next_.size() - 1);
  };
  add_state(0);
  for (const std::string& text : texts) {
    uint16_t at = kStart;
    for (size_t i = 0; i < text.size() && at != kFound; ++i) {
      const auto byte = static_cast<uint8_t>(text[i]);
      if (i + 1 == text.size()) {
        next_[at][byte] = kFound;
      } else if (next_[at][byte] == kStart) {
        const uint16_t made = add_state(static_cast<uint16_t>(i + 1));
        next_[at][byte] = made;
      }
      at = next_[at][byte];
    }
  }
  // Breadth first: where a state has no child, it goes where its longest proper end goes.
  std::vector<uint16_t> fallback(next_.size(), kStart);
  std::deque<uint16_t> queue{kStart};
  while (!queue.empty()) {
    const uint16_t at = queue.front();
    queue.pop_front();
    for (size_t byte = 0; byte < 256; ++byte) {
      uint16_t& to = next_[at][byte];
      const uint16_t otherwise = at == kStart ? kStart : next_[fallback[at]][byte];
      if (to == kStart || otherwise == kFound) {
        to = otherwise;
      } else if (to != kFound) {
        fallback[to] = otherwise;
        queue.push_back(to);
      }
    }
  }
}

size_t StopFinder::find(uint16_t state, std::string_view text) const {
  for (size_t i = 0; i < text.size(); ++i) {
    state = next(state, static_cast<uint8_t>(text[i]));
    if (state == kFound) return i + 1;
  }
  return 0;
}

}  // namespace qiao::constrain
