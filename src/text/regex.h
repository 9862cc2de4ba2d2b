// Regular expressions as published tokenizers write them (Oniguruma's Ruby syntax), run by PCRE2 with limits.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace qiao::tokenization {

struct Match {
  uint32_t begin;
  uint32_t end;
};

// Immutable after construction; find_all is safe from any thread.
class Regex {
 public:
  // Throws Error(kInvalidInput) naming `where` for a malformed pattern, Error(kUnsupported) for syntax with
  // no counterpart, Error(kTooLarge) over 64 KiB.
  Regex(std::string_view onig_pattern, std::string_view where);
  ~Regex();

  // Successive matches, left to right, as Oniguruma's find_iter gives them: an empty match right after a
  // match is skipped. Requires well-formed UTF-8 under 2^31 bytes. Throws Error(kTooLarge) where the match
  // limit is reached.
  void find_all(std::string_view text, std::vector<Match>& matches) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
  std::string where_;
};

// The same pattern in PCRE2's syntax (flags UTF, UCP, MULTILINE; newline LF). Errors as Regex.
std::string translate_regex(std::string_view onig_pattern, std::string_view where);

}  // namespace qiao::tokenization
