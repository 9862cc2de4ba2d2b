// Context-free rules whose bodies are regular expressions over characters and calls of rules: what grammars,
// choices and plain expressions are.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "constrain/automaton.h"
#include "constrain/nfa.h"
#include "constrain/regex.h"

namespace qiao::constrain {

struct Rule {
  std::string name;
  Regex body;
};

// Texts that rules[0] derives. A rule that calls itself first (left recursion) is rewritten to a repetition
// where that is in one rule; through several rules it is Error(kUnsupported). Throws Error(kInvalidInput)
// where no text is derived. Every error names `where`.
std::unique_ptr<Automaton> make_rule_automaton(std::vector<Rule> rules, std::string_view where);

// GBNF as llama.cpp's grammars/README.md describes it, and W3C's EBNF: '…' strings, #x20 also in classes,
// A - B of sets of characters, /* */ comments, numbered rules. A backslash escapes in both. The text is what
// the rule `root` derives, or where there is none the first. Throws Error naming `where`, line and column.
std::vector<Rule> parse_gbnf(std::string_view text, std::string_view where);

}  // namespace qiao::constrain
