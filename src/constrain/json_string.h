// The texts that a JSON string or key may hold: patterns, lists of texts, lengths.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "constrain/chars.h"
#include "constrain/nfa.h"

namespace qiao::constrain {

struct StringSpec {
  struct Pattern {
    std::string source;     // for messages, and to know equal ones
    bool negative = false;  // must not be found
    bool format = false;    // `source` is a format's name
    bool operator==(const Pattern&) const = default;
  };
  std::vector<Pattern> patterns;
  std::optional<std::vector<std::string>> literals;  // one of these
  uint32_t min = 0, max = kUnbounded;                // characters
  bool operator==(const StringSpec&) const = default;

  StringSpec both(const StringSpec& other) const;
};

// The pattern of a "format", fully anchored, empty where any text is of it; nullptr where Qiao does not know
// it.
const char* format_pattern(std::string_view format);
std::vector<std::string> format_names();

// Not thread-safe: automata grow as texts are read.
class StringLanguage {
 public:
  struct At {
    uint32_t state = 0, count = 0;
    uint64_t packed() const { return uint64_t{state} << 32 | count; }
    static At of(uint64_t packed) {
      return {static_cast<uint32_t>(packed >> 32), static_cast<uint32_t>(packed)};
    }
  };
  // All of `spec` at once. Throws Error naming `where`, kTooLarge where its patterns need too many states
  // together.
  StringLanguage(const StringSpec& spec, std::string_view where);
  // A text whose matching tags are exactly `accept`.
  StringLanguage(std::shared_ptr<LazyDfa> dfa, std::vector<uint32_t> accept, uint32_t min, uint32_t max);

  bool empty();
  size_t work() const;  // what it took to make, about: a unit is some nanoseconds
  At start() const { return {dfa_ == nullptr ? 0 : dfa_->start(), 0}; }
  bool accepts(At at) const;
  bool contains(std::string_view utf8);
  // Where each character leads; only where a text can be completed.
  void steps(At at, CharSteps& out);
  bool finite() const { return finite_; }  // a list of texts
  bool is_any(At at) const;                // every character may follow, whatever came
  uint32_t need(At at) const { return min_ > at.count ? min_ - at.count : 0; }
  uint32_t room(At at) const { return max_ == kUnbounded ? kUnbounded : max_ - at.count; }

 private:
  bool counted() const { return min_ > 0 || max_ != kUnbounded; }
  bool live(At at);
  bool state_accepts(uint32_t state) const { return dfa_->tags(state) == accept_; }
  void analyse();
  template <typename Each>
  void each_successor(uint32_t state, Each&& each);

  std::u32string literal_;  // where literal_only_
  bool literal_only_ = false, finite_ = false;
  std::shared_ptr<LazyDfa> dfa_;  // null: any text, or the literal
  std::vector<uint32_t> accept_;
  uint32_t min_ = 0, max_ = kUnbounded;
  // What can be completed: always; where not in the empty set; or by the tables below.
  enum class Liveness { kAlways, kNotEmpty, kTables } liveness_ = Liveness::kAlways;
  std::vector<std::vector<bool>> reach_;  // reach_[t][state]: accepts after exactly t more characters
  std::vector<bool> ever_;                // after any number
  bool steady_ = false;                   // the last of reach_ holds for all t beyond
};

// One automaton that tells which of `patterns` are found in a text (tags 0…), and which of `names` it is (one
// tag for all: patterns.size()).
std::shared_ptr<LazyDfa> make_tag_dfa(const std::vector<StringSpec::Pattern>& patterns,
                                      const std::vector<std::string>& names, std::string_view where);

}  // namespace qiao::constrain
