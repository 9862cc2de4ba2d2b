// Nondeterministic automata over characters, and their determinization on demand (Thompson 1968; RE2's way of
// building only the states that a text visits).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "constrain/regex.h"

namespace qiao::constrain {

// Grown by the build functions, from the end to the begin: each takes the state that follows and returns the
// one that comes first. Throws Error(kTooLarge) naming `where` over kMaxStates, before it allocates them.
class Nfa {
 public:
  static constexpr size_t kMaxStates = 200'000;
  enum class Kind : uint8_t { kRange, kSet, kSplit, kCall, kMatch, kStart, kEnd };
  struct State {
    Kind kind;
    uint32_t lo = 0;     // kRange: first character; kSet: index into sets; kCall: rule; kMatch: tag
    uint32_t hi = 0;     // kRange: last character
    uint32_t out = 0;    // what follows
    uint32_t other = 0;  // kSplit: the other branch
  };

  explicit Nfa(std::string_view where) : where_(where) {}
  uint32_t match(uint32_t tag);
  uint32_t regex(const Regex& regex, uint32_t next);
  uint32_t any_text(uint32_t next);  // .* over all characters
  uint32_t split(uint32_t first, uint32_t second);

  const std::vector<State>& states() const { return states_; }
  const CharSet& set(uint32_t index) const { return sets_[index]; }
  const std::string& where() const { return where_; }

 private:
  uint32_t add(const State& state);
  uint32_t build(const Regex& regex, uint32_t next);

  std::string where_;
  std::vector<State> states_;
  std::vector<CharSet> sets_;
};

// States are sets of NFA states. State 0 is the empty set: nothing can match any more. Not thread-safe.
class LazyDfa {
 public:
  static constexpr uint32_t kEmpty = 0;
  static constexpr size_t kMaxStates = 50'000;
  static constexpr size_t kMaxMembers = 10'000;  // of one set
  static constexpr size_t kMaxWork = 5'000'000;  // members of all sets ever built
  struct Step {
    uint32_t lo, hi, to;
  };
  struct Call {
    uint32_t rule, then;
  };

  // `dead_rules[r]`: a call of rule r can never return. Empty: none is.
  LazyDfa(Nfa nfa, uint32_t start, const std::vector<bool>& dead_rules = {});

  uint32_t start() const { return start_; }
  // Sorted and disjoint; characters between them lead to kEmpty. Throws Error(kTooLarge) at the limits,
  // naming where the expression came from. The spans are valid until the next call.
  std::span<const Step> steps(uint32_t state);
  std::span<const Call> calls(uint32_t state);
  const std::vector<uint32_t>& tags(uint32_t state) const { return states_[state].tags; }  // sorted
  bool matches(uint32_t state) const { return !states_[state].tags.empty(); }
  uint32_t next(uint32_t state, uint32_t c);
  // All states that can be reached, explored up to `limit` of them; throws Error(kTooLarge) over it, or where
  // that takes more than kMaxExploreWork.
  static constexpr size_t kMaxExploreWork = 4'000'000;
  size_t explore(size_t limit);
  size_t work() const { return work_; }  // members of all sets built so far

 private:
  struct State {
    std::vector<uint32_t> members;
    std::vector<uint32_t> tags;
    std::vector<Step> steps;
    std::vector<Call> calls;
    bool expanded = false;
  };
  void find_live(const std::vector<bool>& dead_rules);
  void close(uint32_t nfa_state, bool at_start);
  uint32_t intern();
  void expand(uint32_t state);
  [[noreturn]] void too_large() const;

  Nfa nfa_;
  std::vector<bool> live_;
  std::vector<State> states_;
  std::unordered_multimap<uint64_t, uint32_t> index_;
  std::vector<uint32_t> marks_, stack_, members_;
  uint32_t mark_ = 0;
  size_t work_ = 0;
  uint32_t start_ = 0;
};

}  // namespace qiao::constrain
