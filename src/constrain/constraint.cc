#include "constrain/constraint.h"

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "base/quote.h"
#include "constrain/regex.h"
#include "constrain/rules.h"
#include "text/utf8.h"

namespace qiao::constrain {
namespace {

void check_source(size_t bytes, std::string_view where, const ConstraintLimits& limits) {
  if (bytes > limits.max_source_bytes) {
    throw_error(ErrorKind::kTooLarge, "{}: {} bytes are over the limit of {}", where, bytes,
                limits.max_source_bytes);
  }
}

std::shared_ptr<CompiledGrammar> of_rules(std::vector<Rule> rules, std::string_view where,
                                          const ConstraintLimits& limits) {
  return std::make_shared<CompiledGrammar>(make_rule_automaton(std::move(rules), where), limits);
}

}  // namespace

size_t CompiledGrammar::bytes() const {
  const std::lock_guard lock(mutex_);
  size_t total = machine_.bytes();
  for (const auto& [has, machine] : with_controls_) total += machine->bytes();
  return total;
}

Machine& CompiledGrammar::machine_for(const TokenTable* table) {
  const std::vector<std::string> controls = machine_.automaton().controls();
  std::vector<bool> has(controls.size());
  for (size_t i = 0; i < controls.size() && table != nullptr; ++i) {
    has[i] = table->control_token(controls[i]).has_value();
  }
  if (std::find(has.begin(), has.end(), true) == has.end()) return machine_;
  const std::lock_guard lock(mutex_);
  std::unique_ptr<Machine>& machine = with_controls_[has];
  if (machine == nullptr)
    machine = std::make_unique<Machine>(machine_.automaton().with_controls(has), limits_);
  return *machine;
}

std::shared_ptr<CompiledGrammar> compile_regex(std::string_view pattern, std::string_view where,
                                               const ConstraintLimits& limits) {
  std::vector<Rule> rules;
  rules.push_back({"regex", parse_regex(pattern, RegexDialect::kPlain, where)});
  return of_rules(std::move(rules), where, limits);
}

std::shared_ptr<CompiledGrammar> compile_grammar(std::string_view gbnf, std::string_view where,
                                                 const ConstraintLimits& limits) {
  check_source(gbnf.size(), where, limits);
  return of_rules(parse_gbnf(gbnf, where), where, limits);
}

std::shared_ptr<CompiledGrammar> compile_choice(const std::vector<std::string>& choices,
                                                std::string_view where, const ConstraintLimits& limits) {
  if (choices.empty()) throw_error(ErrorKind::kInvalidInput, "{}: expected at least one choice", where);
  std::vector<Regex> branches;
  size_t bytes = 0;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (!tokenization::utf8_valid(choices[i])) {
      throw_error(ErrorKind::kInvalidInput, "{}[{}]: not valid UTF-8", where, i);
    }
    check_source(bytes += choices[i].size(), where, limits);
    branches.push_back(Regex::literal(choices[i]));
  }
  std::vector<Rule> rules;
  rules.push_back({"choice", Regex::alternate(std::move(branches))});
  return of_rules(std::move(rules), where, limits);
}

ConstraintState::ConstraintState(std::shared_ptr<CompiledGrammar> grammar,
                                 std::shared_ptr<const TokenTable> table)
    : grammar_(std::move(grammar)),
      table_(std::move(table)),
      machine_(&grammar_->machine_for(table_.get())),
      at_(machine_->start()) {}

size_t ConstraintState::accept_bytes(std::string_view bytes) {
  if (ended_) return 0;
  const std::lock_guard lock(grammar_->mutex_);
  Machine::Position at = at_;
  size_t taken = 0;
  for (; taken < bytes.size(); ++taken) {
    const Machine::Position next = machine_->step(at, static_cast<uint8_t>(bytes[taken]));
    if (next == Machine::kDead) break;
    at = next;
  }
  at_ = at;
  return taken;
}

bool ConstraintState::accept_token(TokenId id) {
  QIAO_ASSERT(table_ != nullptr);
  if (ended_ || id < 0 || id >= table_->size()) return false;
  if (table_->is_end(id)) return ended_ = can_end();
  const std::string_view bytes = table_->bytes_of(id);
  if (bytes.empty() || bytes.size() > TokenTable::kMaxTokenBytes) return false;
  const Machine::Position before = at_;
  if (accept_bytes(bytes) == bytes.size()) return true;
  at_ = before;
  return false;
}

void ConstraintState::mask(std::span<uint32_t> words) const {
  QIAO_ASSERT(table_ != nullptr && words.size() == table_->words());
  if (ended_) {
    std::fill(words.begin(), words.end(), 0);
    return;
  }
  const std::lock_guard lock(grammar_->mutex_);
  machine_->mask(at_, *table_, words);
}

bool ConstraintState::can_end() const {
  const std::lock_guard lock(grammar_->mutex_);
  return machine_->can_end(at_);
}

bool ConstraintState::must_end() const {
  const std::lock_guard lock(grammar_->mutex_);
  return machine_->must_end(at_);
}

std::array<uint64_t, 4> ConstraintState::next_bytes() const {
  if (ended_) return {};
  const std::lock_guard lock(grammar_->mutex_);
  return machine_->next_bytes(at_);
}

std::string ConstraintState::forced_bytes(size_t max_bytes) const {
  std::string forced;
  if (ended_) return forced;
  const std::lock_guard lock(grammar_->mutex_);
  Machine& machine = *machine_;
  for (Machine::Position at = at_; forced.size() < max_bytes && !machine.can_end(at);) {
    const auto next = machine.next_bytes(at);
    int count = 0, byte = 0;
    for (int word = 0; word < 4; ++word) {
      count += std::popcount(next[static_cast<size_t>(word)]);
      if (next[static_cast<size_t>(word)] != 0)
        byte = 64 * word + std::countr_zero(next[static_cast<size_t>(word)]);
    }
    if (count != 1) break;
    forced += static_cast<char>(byte);
    at = machine.step(at, static_cast<uint8_t>(byte));
  }
  return forced;
}

std::shared_ptr<CompiledGrammar> GrammarCache::find(const std::string& source) {
  const std::lock_guard lock(mutex_);
  const auto found = index_.find(source);
  if (found == index_.end()) return nullptr;
  if (found->second->second->bytes() > max_bytes_each_) {
    entries_.erase(found->second);
    index_.erase(found);
    return nullptr;
  }
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->second;
}

void GrammarCache::keep(const std::string& source, std::shared_ptr<CompiledGrammar> grammar) {
  const std::lock_guard lock(mutex_);
  if (index_.contains(source)) return;  // somebody else was faster
  entries_.emplace_front(source, std::move(grammar));
  index_[source] = entries_.begin();
  if (entries_.size() > capacity_) {
    index_.erase(entries_.back().first);
    entries_.pop_back();
  }
}

}  // namespace qiao::constrain
