// What generated text must look like: compiled once from a schema, an expression, a grammar or a list of
// choices; then, for each sequence, which tokens may come next.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "constrain/machine.h"
#include "constrain/token_table.h"

namespace qiao::constrain {

// How a JSON text may be spelled. What is accepted is valid for the schema in every style.
struct JsonStyle {
  enum class Whitespace {
    kAny,      // as RFC 8259 allows
    kCompact,  // none
    kSpaced,   // one space after ':' and ',', as Python's json.dumps: leaves the most forced runs in a usual
               // look
  };
  Whitespace whitespace = Whitespace::kAny;
  bool schema_order = false;        // properties only in the schema's order, others after them
  bool canonical_literals = false;  // keys and enum strings without escapes that JSON does not demand

  static JsonStyle any() { return {}; }
  // For generation: what can be forced is forced.
  static JsonStyle generation() { return {Whitespace::kSpaced, true, true}; }
};

struct ConstraintLimits {
  size_t max_source_bytes = size_t{1} << 20;
  size_t max_schema_depth = 128;
  size_t max_schema_nodes = 20'000;
  bool may_be_empty = false;  // a schema that nothing satisfies compiles, and takes nothing
  MachineLimits machine;
};

// Shared by all sequences under the same constraint. Safe from any thread: its tables grow under a lock of
// its own.
class CompiledGrammar {
 public:
  CompiledGrammar(std::unique_ptr<Automaton> automaton, const ConstraintLimits& limits)
      : limits_(limits.machine), machine_(std::move(automaton), limits.machine) {}
  size_t bytes() const;  // about how much memory it takes by now

 private:
  friend class ConstraintState;
  // The one for a vocabulary: they differ where it has control tokens that the constraint names.
  Machine& machine_for(const TokenTable* table);

  mutable std::mutex mutex_;
  MachineLimits limits_;
  Machine machine_;
  std::map<std::vector<bool>, std::unique_ptr<Machine>> with_controls_;
};

// Each throws Error naming `where` (a field of a request, a flag) and the keyword, byte or line:
// kInvalidInput for malformed sources and those that nothing satisfies, kUnsupported for what Qiao cannot
// hold to, kTooLarge over a limit.
std::shared_ptr<CompiledGrammar> compile_json_schema(const Json& schema, std::string_view where,
                                                     const JsonStyle& style = {},
                                                     const ConstraintLimits& limits = {});
std::shared_ptr<CompiledGrammar> compile_json_object(const JsonStyle& style = {},
                                                     const ConstraintLimits& limits = {});
// The whole text matches.
std::shared_ptr<CompiledGrammar> compile_regex(std::string_view pattern, std::string_view where,
                                               const ConstraintLimits& limits = {});
std::shared_ptr<CompiledGrammar> compile_grammar(std::string_view gbnf, std::string_view where,
                                                 const ConstraintLimits& limits = {});
std::shared_ptr<CompiledGrammar> compile_choice(const std::vector<std::string>& choices,
                                                std::string_view where, const ConstraintLimits& limits = {});

// Where one sequence stands. Copied in no time: a copy is what to go back to. Methods throw Error(kTooLarge)
// where the constraint's automaton meets a limit; the state is unchanged then.
class ConstraintState {
 public:
  // `table` may be null where only bytes are taken.
  explicit ConstraintState(std::shared_ptr<CompiledGrammar> grammar,
                           std::shared_ptr<const TokenTable> table = {});

  // Takes a token; an end token only where can_end(). False: refused, nothing changed.
  bool accept_token(TokenId id);
  // Takes bytes up to the first that cannot be taken; returns how many.
  size_t accept_bytes(std::string_view bytes);

  // Bit t of the packed words (32 tokens each, ceil(V/32) words) is set where token t may come next; all are
  // zero only after an end token.
  void mask(std::span<uint32_t> words) const;
  bool can_end() const;   // the text is complete as it is
  bool must_end() const;  // and nothing can follow
  bool ended() const { return ended_; }
  // The bytes that must come next, whatever is sampled: at most `max_bytes`; empty where there is a choice or
  // the text may end. Control tokens are in them as TokenTable spells them.
  std::string forced_bytes(size_t max_bytes = 4096) const;
  std::array<uint64_t, 4> next_bytes() const;  // that may come next, a bit each

 private:
  std::shared_ptr<CompiledGrammar> grammar_;
  std::shared_ptr<const TokenTable> table_;
  Machine* machine_;  // of grammar_, under its mutex
  Machine::Position at_;
  bool ended_ = false;
};

// Compiled grammars by their source, the least recently used dropped first. Thread-safe.
class GrammarCache {
 public:
  explicit GrammarCache(size_t capacity = 64, size_t max_bytes_each = size_t{256} << 20)
      : capacity_(capacity), max_bytes_each_(max_bytes_each) {}
  // What `compile` gave for `source` before, else what it gives now. One whose tables have grown over
  // max_bytes_each is compiled anew. Errors are not kept.
  template <typename Compile>
  std::shared_ptr<CompiledGrammar> get(const std::string& source, Compile&& compile) {
    if (auto known = find(source)) return known;
    auto made = compile();
    keep(source, made);
    return made;
  }

 private:
  std::shared_ptr<CompiledGrammar> find(const std::string& source);
  void keep(const std::string& source, std::shared_ptr<CompiledGrammar> grammar);

  size_t capacity_;
  size_t max_bytes_each_;
  std::mutex mutex_;
  std::list<std::pair<std::string, std::shared_ptr<CompiledGrammar>>> entries_;  // most recent first
  std::unordered_map<std::string, decltype(entries_)::iterator> index_;
};

}  // namespace qiao::constrain
