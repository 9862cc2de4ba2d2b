// What of a generated text is compared with the answer, as lm-evaluation-harness' filters and exact_match do.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace qiao::eval {

struct AnswerFilterOptions {
  std::string regex;         // empty: the whole text
  int64_t regex_match = 0;   // which of its matches; -1: the last
  bool ignore_case = false;  // of both texts
  bool ignore_punctuation = false;
  bool keep_whitespace = false;  // else both texts lose what surrounds them
};

// One thread at a time. Patterns are Python's as far as PCRE2 agrees with it, without its limits on
// look-behind.
class AnswerFilter {
 public:
  // Throws Error(kInvalidInput) for a malformed pattern.
  explicit AnswerFilter(const AnswerFilterOptions& options);
  ~AnswerFilter();
  AnswerFilter(const AnswerFilter&) = delete;
  AnswerFilter& operator=(const AnswerFilter&) = delete;

  // What the filters leave of a generated text: of the chosen match the group, of several groups the first
  // that is not empty, without surrounding white space; "[invalid]" where nothing matches. Throws
  // Error(kTooLarge) where matching takes too many steps.
  std::string extract(std::string_view generated) const;
  // Whether what extract() gave is one of the answers.
  bool matches(std::string_view extracted, const std::vector<std::string>& answers) const;

 private:
  std::string normalize(std::string_view text) const;
  struct Pattern;
  AnswerFilterOptions options_;
  std::unique_ptr<Pattern> pattern_;  // or null
};

}  // namespace qiao::eval
