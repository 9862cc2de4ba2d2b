// Regular expressions that a linear-time automaton can run: what patterns of schemas, the `regex` constraint
// and terminals of grammars are parsed to.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "constrain/char_set.h"

namespace qiao::constrain {

inline constexpr uint32_t kUnbounded = UINT32_MAX;

// An expression as a tree. Value semantics; parsers bound its depth.
struct Regex {
  enum class Kind : uint8_t {
    kEmpty,      // matches ""
    kSet,        // one character of `set`
    kConcat,     // children in order
    kAlternate,  // one of the children
    kRepeat,     // children[0], min to max times
    kCall,       // rule number `min` of a grammar
    kStart,      // ^: the begin of the text
    kEnd,        // $: the end of the text
  };
  Kind kind = Kind::kEmpty;
  CharSet set;
  std::vector<Regex> children;
  uint32_t min = 0;
  uint32_t max = 0;

  static Regex one_of(CharSet set);
  static Regex literal(std::string_view utf8);  // requires well-formed UTF-8
  static Regex concat(std::vector<Regex> children);
  static Regex alternate(std::vector<Regex> children);
  static Regex repeat(Regex child, uint32_t min, uint32_t max);
  static Regex call(uint32_t rule);
};

enum class RegexDialect {
  kPlain,  // as RE2 and Rust read it: `.` is all but \n; \d \w \s are ASCII
  kEcma,   // as JSON Schema's patterns: `.` also leaves out \r U+2028 U+2029; \s is Unicode's
};

inline constexpr size_t kMaxPatternBytes = size_t{64} << 10;
inline constexpr uint32_t kMaxRepeat = 100'000;

// Throws Error naming `where` and the byte: kInvalidInput for malformed text, kUnsupported for what no finite
// automaton can do (backreferences, look-around, word boundaries), kTooLarge over kMaxPatternBytes or a depth
// of 200.
Regex parse_regex(std::string_view pattern, RegexDialect dialect, std::string_view where);

// A character class that begins after its '[' at pattern[at]; moves `at` after its ']'.
CharSet parse_regex_class(std::string_view pattern, size_t& at, RegexDialect dialect, std::string_view where);

}  // namespace qiao::constrain
