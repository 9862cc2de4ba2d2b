// A structure becomes a nondeterministic automaton over literals, free texts and calls of other automata,
// without recursion of its own. A state is a step of it; free text also knows how far into a stop it is.
#include "constrain/structure.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/error.h"
#include "base/quote.h"
#include "constrain/chars.h"
#include "constrain/json_automaton.h"
#include "constrain/rules.h"
#include "text/utf8.h"

namespace qiao::constrain {

Structure Structure::literal(std::string text) { return {.kind = Kind::kLiteral, .text = std::move(text)}; }
Structure Structure::token(std::string text) { return {.kind = Kind::kToken, .text = std::move(text)}; }
Structure Structure::json(Json schema) { return {.kind = Kind::kJson, .schema = std::move(schema)}; }
Structure Structure::free_text(std::vector<std::string> stops) {
  return {.kind = Kind::kFreeText, .stops = std::move(stops)};
}
Structure Structure::regex(std::string pattern) { return {.kind = Kind::kRegex, .text = std::move(pattern)}; }
Structure Structure::grammar(std::string source) {
  return {.kind = Kind::kGrammar, .text = std::move(source)};
}
Structure Structure::sequence(std::vector<Structure> children) {
  return {.kind = Kind::kSequence, .children = std::move(children)};
}
Structure Structure::choice(std::vector<Structure> children) {
  return {.kind = Kind::kChoice, .children = std::move(children)};
}
Structure Structure::repeat(Structure child, int min, int max) {
  Structure result{.kind = Kind::kRepeat, .min = min, .max = max};
  result.children.push_back(std::move(child));
  return result;
}

namespace {

constexpr size_t kMaxSteps = 100'000;
constexpr int kMaxStructureDepth = 64;

struct StructureStep {
  enum class Kind : uint8_t { kMatch, kSplit, kLiteral, kControl, kFreeText, kCall };
  Kind kind = Kind::kMatch;
  uint32_t index = 0;  // of the text, control, finder or automaton
  uint32_t next = 0;
  uint32_t other = 0;  // kSplit: the other branch
};

// What all automata of a structure share, whichever control tokens they have.
struct Program {
  std::vector<StructureStep> steps;
  uint32_t start = 0;
  std::vector<std::string> texts;
  std::vector<std::string> controls;
  std::vector<StopFinder> finders;
  std::vector<std::unique_ptr<Automaton>> automata;
};

// Built from the end to the begin: each function takes the step that follows and returns the one that comes
// first.
class ProgramBuilder {
 public:
  ProgramBuilder(std::string_view where, const ConstraintLimits& limits) : where_(where), limits_(limits) {}

  std::shared_ptr<Program> build(const Structure& structure) {
    const uint32_t match = add({});
    program_->start = build(structure, match, 0);
    return program_;
  }

 private:
  using Kind = Structure::Kind;

  uint32_t add(const StructureStep& step) {
    if (program_->steps.size() >= kMaxSteps) {
      throw_error(ErrorKind::kTooLarge, "{}: the structure needs over {} steps: repeat less", where_,
                  kMaxSteps);
    }
    program_->steps.push_back(step);
    return static_cast<uint32_t>(program_->steps.size() - 1);
  }
  uint32_t split(uint32_t first, uint32_t second) {
    return add({.kind = StructureStep::Kind::kSplit, .next = first, .other = second});
  }
  [[noreturn]] void invalid(std::string_view what) const {
    throw_error(ErrorKind::kInvalidInput, "{}: {}", where_, what);
  }

  uint32_t build(const Structure& structure, uint32_t next, int depth) {
    if (depth > kMaxStructureDepth) {
      throw_error(ErrorKind::kTooLarge, "{}: a structure nested deeper than {}", where_, kMaxStructureDepth);
    }
    switch (structure.kind) {
      case Kind::kLiteral:
        return literal(structure.text, next);
      case Kind::kToken:
        return control(structure.text, next);
      case Kind::kFreeText:
        return free_text(structure, next);
      case Kind::kJson:
      case Kind::kRegex:
      case Kind::kGrammar:
        return add({.kind = StructureStep::Kind::kCall, .index = automaton(structure), .next = next});
      case Kind::kSequence:
        return sequence(structure, next, depth);
      case Kind::kChoice: {
        if (structure.children.empty()) invalid("a choice of nothing");
        uint32_t all = build(structure.children.back(), next, depth + 1);
        for (size_t i = structure.children.size() - 1; i-- > 0;) {
          all = split(build(structure.children[i], next, depth + 1), all);
        }
        return all;
      }
      case Kind::kRepeat:
        return repeat(structure, next, depth);
    }
    return next;
  }

  uint32_t literal(const std::string& text, uint32_t next) {
    if (text.empty()) return next;
    if (!tokenization::utf8_valid(text)) invalid("a literal that is not valid UTF-8");
    const auto [known, added] = texts_.try_emplace(text, static_cast<uint32_t>(program_->texts.size()));
    if (added) program_->texts.push_back(text);
    return add({.kind = StructureStep::Kind::kLiteral, .index = known->second, .next = next});
  }

  uint32_t control(const std::string& text, uint32_t next) {
    if (text.empty() || !tokenization::utf8_valid(text)) invalid("a control token without a text in UTF-8");
    const auto known = std::find(program_->controls.begin(), program_->controls.end(), text);
    const auto index = static_cast<uint32_t>(known - program_->controls.begin());
    if (known == program_->controls.end()) program_->controls.push_back(text);
    return add({.kind = StructureStep::Kind::kControl, .index = index, .next = next});
  }

  uint32_t free_text(const Structure& structure, uint32_t next) {
    StopFinder finder(structure.stops, where_);
    const auto known =
        std::find_if(program_->finders.begin(), program_->finders.end(),
                     [&](const auto& other) { return other.signature() == finder.signature(); });
    const auto index = static_cast<uint32_t>(known - program_->finders.begin());
    if (known == program_->finders.end()) program_->finders.push_back(std::move(finder));
    return add({.kind = StructureStep::Kind::kFreeText, .index = index, .next = next});
  }

  // Literals side by side are one: a stop is looked for in all of it.
  uint32_t sequence(const Structure& structure, uint32_t next, int depth) {
    std::vector<const Structure*> parts;
    flatten(structure, depth, parts);
    for (size_t i = parts.size(); i-- > 0;) {
      if (parts[i]->kind != Kind::kLiteral) {
        next = build(*parts[i], next, depth + 1);
        continue;
      }
      size_t first = i;
      while (first > 0 && parts[first - 1]->kind == Kind::kLiteral) --first;
      std::string text;
      for (size_t part = first; part <= i; ++part) text += parts[part]->text;
      next = literal(text, next);
      i = first;
    }
    return next;
  }
  void flatten(const Structure& structure, int depth, std::vector<const Structure*>& parts) {
    if (depth > kMaxStructureDepth) {
      throw_error(ErrorKind::kTooLarge, "{}: a structure nested deeper than {}", where_, kMaxStructureDepth);
    }
    for (const Structure& child : structure.children) {
      if (child.kind == Kind::kSequence) {
        flatten(child, depth + 1, parts);
      } else {
        parts.push_back(&child);
      }
    }
  }

  uint32_t repeat(const Structure& structure, uint32_t next, int depth) {
    if (structure.children.size() != 1) invalid("a repetition of other than one structure");
    const Structure& child = structure.children.front();
    const int min = std::max(structure.min, 0);
    if (structure.max >= 0 && structure.max < min) invalid("a repetition whose least is over its most");
    if (static_cast<size_t>(std::max(min, structure.max)) > kMaxSteps) {
      throw_error(ErrorKind::kTooLarge, "{}: a repetition over {} times", where_, kMaxSteps);
    }
    uint32_t first = next;
    if (structure.max < 0) {
      first = split(0, next);
      const uint32_t body = build(child, first, depth + 1);
      program_->steps[first].next = body;
    } else {
      for (int i = min; i < structure.max; ++i) first = split(build(child, first, depth + 1), next);
    }
    for (int i = 0; i < min; ++i) first = build(child, first, depth + 1);
    return first;
  }

  // Copies that a repetition makes share it.
  uint32_t automaton(const Structure& structure) {
    const auto [known, added] =
        automata_.try_emplace(&structure, static_cast<uint32_t>(program_->automata.size()));
    if (!added) return known->second;
    if (structure.text.size() > limits_.max_source_bytes) {
      throw_error(ErrorKind::kTooLarge, "{}: {} bytes are over the limit of {}", where_,
                  structure.text.size(), limits_.max_source_bytes);
    }
    if (structure.kind == Kind::kJson) {
      program_->automata.push_back(
          make_json_automaton(structure.schema, where_, JsonStyle::generation(), limits_));
    } else if (structure.kind == Kind::kRegex) {
      std::vector<Rule> rules;
      rules.push_back({"regex", parse_regex(structure.text, RegexDialect::kPlain, where_)});
      program_->automata.push_back(make_rule_automaton(std::move(rules), where_));
    } else {
      program_->automata.push_back(make_rule_automaton(parse_gbnf(structure.text, where_), where_));
    }
    return known->second;
  }

  std::string where_;
  ConstraintLimits limits_;
  std::shared_ptr<Program> program_ = std::make_shared<Program>();
  std::map<std::string, uint32_t> texts_;
  std::map<const Structure*, uint32_t> automata_;
};

// Kinds of states of its own; those of a called automaton carry its number from the ninth bit on.
enum StructureState : uint32_t { kAtStep = 1, kInText, kInControl, kInFreeText };
constexpr uint32_t kOwnKinds = 1 << 8;

class StructureAutomaton : public Automaton {
 public:
  StructureAutomaton(std::shared_ptr<Program> program, std::vector<bool> has)
      : program_(std::move(program)), has_(std::move(has)) {}

  StateKey start() const override { return {kAtStep, program_->start}; }

  std::vector<std::string> controls() const override { return program_->controls; }
  std::unique_ptr<Automaton> with_controls(const std::vector<bool>& has) override {
    return std::make_unique<StructureAutomaton>(program_, has);
  }

  std::optional<AnyString> any_string(const StateKey& key) const override {
    if (key.kind < kOwnKinds) return std::nullopt;
    return called(key).any_string(inner(key));
  }
  std::optional<FreeText> free_text(const StateKey& key) const override {
    if (key.kind != kInFreeText || key.pending != 0) return std::nullopt;
    return FreeText{&program_->finders[program_->steps[key.a].index], static_cast<uint16_t>(key.b)};
  }

  void expand(const StateKey& key, Expansion& out) override {
    if (key.kind >= kOwnKinds) {
      const uint32_t number = key.kind / kOwnKinds - 1;
      called(key).expand(inner(key), out);
      for (Expansion::Edge& edge : out.edges) {
        edge.to = outer(edge.to, number);
        if (edge.calls) edge.then = outer(edge.then, number);
      }
      for (Expansion::Call& call : out.calls) {
        call.to = outer(call.to, number);
        call.then = outer(call.then, number);
      }
      return;
    }
    const StructureStep& step = program_->steps[key.a];
    switch (key.kind) {
      case kAtStep:
        return at_step(key.a, step, key.b, out);
      case kInText:
        return spelled(kInText, program_->texts[step.index], key, step, out);
      case kInControl:
        return spelled(kInControl, controls_text(step), key, step, out);
      default:
        return in_free_text(key, step, out);
    }
  }

 private:
  Automaton& called(const StateKey& key) const { return *program_->automata[key.kind / kOwnKinds - 1]; }
  static StateKey inner(StateKey key) {
    key.kind %= kOwnKinds;
    return key;
  }
  static StateKey outer(StateKey key, uint32_t number) {
    if (key == kReturn) return key;
    QIAO_ASSERT(key.kind < kOwnKinds);
    key.kind += (number + 1) * kOwnKinds;
    return key;
  }
  // Without a byte, and nothing to come back to.
  static void go(const StateKey& to, Expansion& out) { out.call(to, kReturn); }

  std::string controls_text(const StructureStep& step) const {
    const std::string& text = program_->controls[step.index];
    return has(step) ? TokenTable::spelling_of(text) : text;
  }
  bool has(const StructureStep& step) const { return step.index < has_.size() && has_[step.index]; }

  // `before`: 0, or what the free text that ends here had of a stop (contexts_).
  void at_step(uint32_t number, const StructureStep& step, uint32_t before, Expansion& out) {
    switch (step.kind) {
      case StructureStep::Kind::kMatch:
        out.final = true;
        return;
      case StructureStep::Kind::kSplit:
        go({kAtStep, step.next, before}, out);
        go({kAtStep, step.other, before}, out);
        return;
      case StructureStep::Kind::kLiteral: {
        const std::string& text = program_->texts[step.index];
        if (may_follow(before, text)) spelled(kInText, text, {kInText, number, 0}, step, out);
        return;
      }
      case StructureStep::Kind::kControl: {
        const std::string text = controls_text(step);
        if (has(step) || may_follow(before, text))
          spelled(kInControl, text, {kInControl, number, 0}, step, out);
        return;
      }
      case StructureStep::Kind::kFreeText:
        go({kInFreeText, number, StopFinder::kStart}, out);
        return;
      case StructureStep::Kind::kCall:
        out.call(outer(program_->automata[step.index]->start(), step.index), {kAtStep, step.next, 0});
        return;
    }
  }

  // Whether the first stop in the free text and `text` after it is the one that `text` begins with, if it
  // begins with one: "`" and then "```" would be "```" and then "`".
  bool may_follow(uint32_t before, const std::string& text) const {
    if (before == 0) return true;
    const auto [finder, at] = contexts_[before - 1];
    const StopFinder& stops = program_->finders[finder];
    return stops.find(at, text) == stops.find(StopFinder::kStart, text);
  }

  // key.b: bytes of the text so far.
  static void spelled(uint32_t kind, const std::string& text, const StateKey& key, const StructureStep& step,
                      Expansion& out) {
    const bool last = key.b + 1 == text.size();
    out.edge(text[key.b], last ? StateKey{kAtStep, step.next} : StateKey{kind, key.a, key.b + 1});
  }

  // key.b: how far the finder has come.
  void in_free_text(const StateKey& key, const StructureStep& step, Expansion& out) {
    const StopFinder& stops = program_->finders[step.index];
    const auto at = static_cast<uint16_t>(key.b);
    CharSteps any;
    const CharSet all = CharSet::any();
    for (const CharRange& range : all.ranges()) any.steps.push_back({range.lo, range.hi, 0});
    Expansion characters;
    expand_chars(
        any, key.pending, CharSpelling::kUtf8, [](uint64_t) { return StateKey{kInFreeText}; },
        [](uint32_t pending) {
          return StateKey{kInFreeText, 0, 0, 0, pending};
        },
        characters);
    for (const Expansion::Edge& edge : characters.edges) {
      for (uint32_t byte = edge.lo; byte <= edge.hi; ++byte) {
        const uint16_t next = stops.next(at, static_cast<uint8_t>(byte));
        if (next == StopFinder::kFound) continue;
        const StateKey to{kInFreeText, key.a, next, 0, edge.to.pending};
        if (!out.edges.empty() && out.edges.back().hi + 1u == byte && out.edges.back().to == to) {
          out.edges.back().hi = static_cast<uint8_t>(byte);
        } else {
          out.edge(static_cast<uint8_t>(byte), static_cast<uint8_t>(byte), to);
        }
      }
    }
    if (key.pending == 0) go({kAtStep, step.next, context(step.index, at)}, out);
  }

  uint32_t context(uint32_t finder, uint16_t at) {
    if (at == StopFinder::kStart) return 0;
    const std::pair<uint32_t, uint16_t> wanted{finder, at};
    const auto known = std::find(contexts_.begin(), contexts_.end(), wanted);
    const auto number = static_cast<uint32_t>(known - contexts_.begin()) + 1;
    if (known == contexts_.end()) contexts_.push_back(wanted);
    return number;
  }

  std::shared_ptr<Program> program_;
  std::vector<bool> has_;
  std::vector<std::pair<uint32_t, uint16_t>> contexts_;  // finder and its state
};

}  // namespace

std::shared_ptr<CompiledGrammar> compile_structure(const Structure& structure, std::string_view where,
                                                   const ConstraintLimits& limits) {
  std::shared_ptr<Program> program = ProgramBuilder(where, limits).build(structure);
  return std::make_shared<CompiledGrammar>(
      std::make_unique<StructureAutomaton>(std::move(program), std::vector<bool>()), limits);
}

}  // namespace qiao::constrain
