// Finds stop strings in a stream of text, holding back what may still become one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qiao {

class StopMatcher {
 public:
  // Empty stop strings are ignored.
  explicit StopMatcher(std::vector<std::string> stops);

  // Adds text; returns what can be shown: everything that cannot be part of a stop string any more. Once a
  // stop string has been completed, stopped() is true, what precedes it has been returned and later text is
  // dropped.
  std::string push(std::string_view text);
  // The end of the stream: what was held back.
  std::string finish();
  bool stopped() const { return stopped_; }
  const std::string& matched() const { return matched_; }

 private:
  std::vector<std::string> stops_;
  size_t longest_ = 0;
  std::string held_;
  bool stopped_ = false;
  std::string matched_;
};

}  // namespace qiao
