#include "constrain/rules.h"

#include <algorithm>

#include "base/error.h"
#include "base/quote.h"
#include "constrain/chars.h"

namespace qiao::constrain {
namespace {

constexpr uint32_t kInRule = 1;

class RuleAutomaton : public Automaton {
 public:
  explicit RuleAutomaton(std::vector<LazyDfa> rules) : rules_(std::move(rules)) {}

  StateKey start() const override { return {kInRule, 0, rules_[0].start()}; }

  void expand(const StateKey& key, Expansion& out) override {
    LazyDfa& rule = rules_[key.a];
    CharSteps steps;
    for (const LazyDfa::Step& step : rule.steps(key.b)) steps.steps.push_back({step.lo, step.hi, step.to});
    expand_chars(
        steps, key.pending, CharSpelling::kUtf8,
        [&](uint64_t to) {
          const auto state = static_cast<uint32_t>(to);
          // Nothing can follow: return at once.
          const bool done = rule.matches(state) && rule.steps(state).empty() && rule.calls(state).empty();
          return done ? kReturn : StateKey{kInRule, key.a, state};
        },
        [&](uint32_t pending) {
          return StateKey{kInRule, key.a, key.b, 0, pending};
        },
        out);
    if (key.pending != 0) return;
    for (const LazyDfa::Call& call : rule.calls(key.b)) {
      out.call({kInRule, call.rule, rules_[call.rule].start()}, {kInRule, key.a, call.then});
    }
    out.final = rule.matches(key.b);
  }

 private:
  std::vector<LazyDfa> rules_;
};

bool matches_empty(const Regex& regex, const std::vector<bool>& nullable) {
  switch (regex.kind) {
    case Regex::Kind::kSet:
      return false;
    case Regex::Kind::kCall:
      return nullable[regex.min];
    case Regex::Kind::kRepeat:
      return regex.min == 0 || matches_empty(regex.children[0], nullable);
    case Regex::Kind::kConcat:
      return std::all_of(regex.children.begin(), regex.children.end(),
                         [&](const Regex& child) { return matches_empty(child, nullable); });
    case Regex::Kind::kAlternate:
      return std::any_of(regex.children.begin(), regex.children.end(),
                         [&](const Regex& child) { return matches_empty(child, nullable); });
    default:
      return true;
  }
}

bool can_match(const Regex& regex, const std::vector<bool>& productive) {
  switch (regex.kind) {
    case Regex::Kind::kSet:
      return !regex.set.empty();
    case Regex::Kind::kCall:
      return productive[regex.min];
    case Regex::Kind::kRepeat:
      return regex.min == 0 || can_match(regex.children[0], productive);
    case Regex::Kind::kConcat:
      return std::all_of(regex.children.begin(), regex.children.end(),
                         [&](const Regex& child) { return can_match(child, productive); });
    case Regex::Kind::kAlternate:
      return std::any_of(regex.children.begin(), regex.children.end(),
                         [&](const Regex& child) { return can_match(child, productive); });
    default:
      return true;
  }
}

// Least fixed point of `holds` over the rules.
template <typename Holds>
std::vector<bool> fixed_point(const std::vector<Rule>& rules, Holds&& holds) {
  std::vector<bool> result(rules.size());
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t r = 0; r < rules.size(); ++r) {
      if (result[r] || !holds(rules[r].body, result)) continue;
      result[r] = changed = true;
    }
  }
  return result;
}

// The rules that `regex` may call before its first character.
void first_calls(const Regex& regex, const std::vector<bool>& nullable, std::vector<uint32_t>& calls) {
  if (regex.kind == Regex::Kind::kCall) calls.push_back(regex.min);
  for (const Regex& child : regex.children) {
    first_calls(child, nullable, calls);
    if (regex.kind == Regex::Kind::kConcat && !matches_empty(child, nullable)) break;
  }
}

bool calls_first(const Regex& regex, uint32_t rule) {
  return (regex.kind == Regex::Kind::kCall && regex.min == rule) ||
         (regex.kind == Regex::Kind::kConcat && calls_first(regex.children.front(), rule));
}

// A = A x | y becomes A = y x*.
void unroll_left_recursion(uint32_t rule, Regex& body) {
  std::vector<Regex> branches;
  if (body.kind == Regex::Kind::kAlternate) {
    branches = std::move(body.children);
  } else {
    branches.push_back(std::move(body));
  }
  std::vector<Regex> first, rest;
  for (Regex& branch : branches) {
    const bool calls = calls_first(branch, rule);
    if (calls && branch.kind == Regex::Kind::kConcat && branch.children.front().kind == Regex::Kind::kCall) {
      branch.children.erase(branch.children.begin());
      rest.push_back(Regex::concat(std::move(branch.children)));
    } else if (!calls || branch.kind != Regex::Kind::kCall) {
      first.push_back(std::move(branch));  // one that calls is refused below
    }
  }
  body = Regex::alternate(std::move(first));
  if (rest.empty()) return;
  std::vector<Regex> parts;
  parts.push_back(std::move(body));
  parts.push_back(Regex::repeat(Regex::alternate(std::move(rest)), 0, kUnbounded));
  body = Regex::concat(std::move(parts));
}

void refuse_left_recursion(const std::vector<Rule>& rules, const std::vector<bool>& nullable,
                           std::string_view where) {
  std::vector<std::vector<uint32_t>> calls(rules.size());
  for (size_t r = 0; r < rules.size(); ++r) first_calls(rules[r].body, nullable, calls[r]);
  enum : uint8_t { kNew, kOpen, kDone };
  std::vector<uint8_t> marks(rules.size(), kNew);
  for (uint32_t root = 0; root < rules.size(); ++root) {
    std::vector<std::pair<uint32_t, size_t>> path;  // rule, next of its calls
    if (marks[root] != kNew) continue;
    path.emplace_back(root, 0);
    marks[root] = kOpen;
    while (!path.empty()) {
      auto& [rule, next] = path.back();
      if (next == calls[rule].size()) {
        marks[rule] = kDone;
        path.pop_back();
        continue;
      }
      const uint32_t called = calls[rule][next++];
      if (marks[called] == kOpen) {
        throw_error(ErrorKind::kUnsupported,
                    "{}: rule {} calls itself before its first character (left recursion); write it as a "
                    "repetition",
                    where, quote_text(rules[called].name));
      }
      if (marks[called] == kNew) {
        marks[called] = kOpen;
        path.emplace_back(called, 0);
      }
    }
  }
}

}  // namespace

std::unique_ptr<Automaton> make_rule_automaton(std::vector<Rule> rules, std::string_view where) {
  for (uint32_t r = 0; r < rules.size(); ++r) unroll_left_recursion(r, rules[r].body);
  const std::vector<bool> nullable = fixed_point(rules, matches_empty);
  refuse_left_recursion(rules, nullable, where);
  std::vector<bool> dead = fixed_point(rules, can_match);
  dead.flip();
  std::vector<LazyDfa> automata;
  automata.reserve(rules.size());
  size_t total = 0;
  for (const Rule& rule : rules) {
    Nfa nfa(where);
    const uint32_t start = nfa.regex(rule.body, nfa.match(0));
    total += nfa.states().size();
    if (total > Nfa::kMaxStates) {
      throw_error(ErrorKind::kTooLarge, "{}: the rules need over {} automaton states", where,
                  Nfa::kMaxStates);
    }
    automata.emplace_back(std::move(nfa), start, dead);
  }
  if (automata[0].start() == LazyDfa::kEmpty) {
    throw_error(ErrorKind::kInvalidInput, "{}: no text satisfies it", where);
  }
  return std::make_unique<RuleAutomaton>(std::move(automata));
}

}  // namespace qiao::constrain
