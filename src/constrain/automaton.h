// The one form that schemas, grammars and expressions are compiled to: a pushdown automaton over bytes whose
// states are made when a text first comes to them. Calls and returns are as in a recursive transition network
// (Woods 1970).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "constrain/stop_finder.h"

namespace qiao::constrain {

// What a state is, in the words of the automaton that made it. Equal keys are one state.
struct StateKey {
  uint32_t kind = 0;
  uint32_t a = 0, b = 0, c = 0;
  uint32_t pending = 0;  // what of a character has come so far; see chars.h
  bool operator==(const StateKey&) const = default;
};

// The state that only returns.
inline constexpr StateKey kReturn = {};

struct Expansion {
  // On a byte in [lo, hi] go to `to`; where `calls`, remember to go on at `then` when it returns.
  struct Edge {
    uint8_t lo, hi;
    bool calls;
    StateKey to, then;
  };
  // Without a byte: go to `to`, and at its return to `then`.
  struct Call {
    StateKey to, then;
  };
  std::vector<Edge> edges;
  std::vector<Call> calls;
  bool final = false;  // may return to who called

  void edge(uint8_t lo, uint8_t hi, const StateKey& to) { edges.push_back({lo, hi, false, to, {}}); }
  void edge(char c, const StateKey& to) { edge(static_cast<uint8_t>(c), static_cast<uint8_t>(c), to); }
  void call_edge(char c, const StateKey& to, const StateKey& then) {
    edges.push_back({static_cast<uint8_t>(c), static_cast<uint8_t>(c), true, to, then});
  }
  void call(const StateKey& to, const StateKey& then) { calls.push_back({to, then}); }
};

// Every state that it hands out can come to an accepted text: a prefix that is taken can always be completed.
class Automaton {
 public:
  virtual ~Automaton() = default;
  virtual StateKey start() const = 0;
  // Adds to `out`, which is empty. Same key, same answer. Not thread-safe. Throws Error(kTooLarge) at its
  // limits.
  virtual void expand(const StateKey& key, Expansion& out) = 0;
  // For a state inside a JSON string that may hold any characters: how many more it must, and may hold. Their
  // masks are shared by all grammars of a tokenizer.
  struct AnyString {
    uint32_t need = 0;
    uint32_t room = UINT32_MAX;
  };
  virtual std::optional<AnyString> any_string(const StateKey&) const { return std::nullopt; }
  // For a state whose edges take any text in which none of `stops` occurs: how far the finder has come. Their
  // masks are shared too.
  struct FreeText {
    const StopFinder* stops;
    uint16_t at;
  };
  virtual std::optional<FreeText> free_text(const StateKey&) const { return std::nullopt; }

  // The control tokens that it names. It spells them as text; `with_controls` makes one that takes those
  // that a vocabulary `has` as tokens instead (TokenTable::spelling_of). The original must outlive it.
  virtual std::vector<std::string> controls() const { return {}; }
  virtual std::unique_ptr<Automaton> with_controls(const std::vector<bool>& has) {
    (void)has;
    return nullptr;
  }
};

}  // namespace qiao::constrain
