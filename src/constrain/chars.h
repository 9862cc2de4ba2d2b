// From an automaton over characters to one over bytes: as plain UTF-8 (RFC 3629), or as they stand inside a
// JSON string (RFC 8259), with escapes.
#pragma once

#include <cstdint>
#include <functional>

#include "constrain/automaton.h"

namespace qiao::constrain {

struct CharSteps {
  struct Step {
    uint32_t lo, hi;
    uint64_t to;  // the caller's own state
  };
  std::vector<Step> steps;  // sorted, disjoint; each leads to a state that can still match
};

enum class CharSpelling {
  kUtf8,           // the character's bytes
  kJson,           // its bytes, or any escape of JSON; quotes, backslashes and controls only as escapes
  kJsonCanonical,  // its bytes, or the shortest escape where JSON demands one
};

// Adds the edges of a state that has read `pending` of a character (0: none yet) and whose characters lead on
// as `steps` says. `key_of(to, pending)` is the state after a byte: with pending 0 the character is whole and
// `to` its target; otherwise `to` is unused and the state stays where it was.
void expand_chars(const CharSteps& steps, uint32_t pending, CharSpelling spelling,
                  const std::function<StateKey(uint64_t to)>& whole,
                  const std::function<StateKey(uint32_t pending)>& part, Expansion& out);

}  // namespace qiao::constrain
