#include "constrain/nfa.h"

#include <algorithm>

#include "base/error.h"

namespace qiao::constrain {
namespace {

// How many states `regex` takes, saturating.
uint64_t states_of(const Regex& regex) {
  constexpr uint64_t kMany = uint64_t{1} << 40;
  uint64_t count = 1;
  for (const Regex& child : regex.children) count = std::min(kMany, count + states_of(child));
  if (regex.kind != Regex::Kind::kRepeat) return count;
  const uint64_t copies = std::max<uint64_t>(1, regex.max == kUnbounded ? regex.min + 1 : regex.max);
  return std::min(kMany, (count + 1) * copies);
}

}  // namespace

uint32_t Nfa::add(const State& state) {
  states_.push_back(state);
  return static_cast<uint32_t>(states_.size() - 1);
}

uint32_t Nfa::match(uint32_t tag) { return add({.kind = Kind::kMatch, .lo = tag}); }

uint32_t Nfa::split(uint32_t first, uint32_t second) {
  return add({.kind = Kind::kSplit, .out = first, .other = second});
}

uint32_t Nfa::any_text(uint32_t next) {
  const uint32_t loop = split(0, next);
  states_[loop].out = build(Regex::one_of(CharSet::any()), loop);
  return loop;
}

uint32_t Nfa::regex(const Regex& regex, uint32_t next) {
  const uint64_t count = states_of(regex);
  if (count > kMaxStates || states_.size() + count > kMaxStates) {
    throw_error(ErrorKind::kTooLarge, "{}: the expression needs over {} automaton states: repeat less",
                where_, kMaxStates);
  }
  return build(regex, next);
}

uint32_t Nfa::build(const Regex& regex, uint32_t next) {
  switch (regex.kind) {
    case Regex::Kind::kEmpty:
      return next;
    case Regex::Kind::kSet:
      if (regex.set.ranges().size() == 1) {
        const CharRange range = regex.set.ranges().front();
        return add({.kind = Kind::kRange, .lo = range.lo, .hi = range.hi, .out = next});
      }
      if (sets_.empty() || sets_.back() != regex.set)
        sets_.push_back(regex.set);  // often one many times over
      return add({.kind = Kind::kSet, .lo = static_cast<uint32_t>(sets_.size() - 1), .out = next});
    case Regex::Kind::kConcat:
      for (size_t i = regex.children.size(); i-- > 0;) next = build(regex.children[i], next);
      return next;
    case Regex::Kind::kAlternate: {
      // No branch at all matches nothing: the empty set.
      if (regex.children.empty()) return build(Regex::one_of({}), next);
      uint32_t all = build(regex.children.back(), next);
      for (size_t i = regex.children.size() - 1; i-- > 0;) all = split(build(regex.children[i], next), all);
      return all;
    }
    case Regex::Kind::kRepeat: {
      const Regex& child = regex.children.front();
      uint32_t first = next;
      if (regex.max == kUnbounded) {
        first = split(0, next);
        const uint32_t body = build(child, first);
        states_[first].out = body;
      } else {
        // x{0,2} is (x(x)?)?: every copy may skip to the end.
        for (uint32_t i = regex.min; i < regex.max; ++i) first = split(build(child, first), next);
      }
      for (uint32_t i = 0; i < regex.min; ++i) first = build(child, first);
      return first;
    }
    case Regex::Kind::kCall:
      return add({.kind = Kind::kCall, .lo = regex.min, .out = next});
    case Regex::Kind::kStart:
      return add({.kind = Kind::kStart, .out = next});
    case Regex::Kind::kEnd:
      return add({.kind = Kind::kEnd, .out = next});
  }
  return next;
}

LazyDfa::LazyDfa(Nfa nfa, uint32_t start, const std::vector<bool>& dead_rules) : nfa_(std::move(nfa)) {
  marks_.assign(nfa_.states().size(), 0);
  find_live(dead_rules);
  members_.clear();
  intern();  // kEmpty
  ++mark_;
  close(start, /*at_start=*/true);
  start_ = intern();
}

void LazyDfa::too_large() const {
  throw_error(ErrorKind::kTooLarge, "{}: the expression's automaton grows over the limit; simplify it",
              nfa_.where());
}

// Which NFA states can still come to a match: what leads nowhere is left out of every set, so that a set that
// is not empty is alive. (Backwards from the matches; an edge through ^ counts only at the start, one through
// $ only where nothing but the end follows.)
void LazyDfa::find_live(const std::vector<bool>& dead_rules) {
  const auto& states = nfa_.states();
  std::vector<std::vector<uint32_t>> from(states.size());
  for (uint32_t s = 0; s < states.size(); ++s) {
    if (states[s].kind == Nfa::Kind::kMatch) continue;
    from[states[s].out].push_back(s);
    if (states[s].kind == Nfa::Kind::kSplit) from[states[s].other].push_back(s);
  }
  // First: from where the end is reached without a character.
  std::vector<bool> ends(states.size());
  std::vector<uint32_t> queue;
  const auto spread = [&](std::vector<bool>& reached, auto&& passes) {
    for (uint32_t s = 0; s < states.size(); ++s) {
      if (reached[s]) queue.push_back(s);
    }
    while (!queue.empty()) {
      const uint32_t s = queue.back();
      queue.pop_back();
      for (const uint32_t before : from[s]) {
        if (reached[before] || !passes(before)) continue;
        reached[before] = true;
        queue.push_back(before);
      }
    }
  };
  for (uint32_t s = 0; s < states.size(); ++s) ends[s] = states[s].kind == Nfa::Kind::kMatch;
  spread(ends, [&](uint32_t s) {
    return states[s].kind == Nfa::Kind::kSplit || states[s].kind == Nfa::Kind::kEnd ||
           states[s].kind == Nfa::Kind::kStart;
  });
  live_.assign(states.size(), false);
  for (uint32_t s = 0; s < states.size(); ++s) {
    live_[s] = states[s].kind == Nfa::Kind::kMatch || (states[s].kind == Nfa::Kind::kEnd && ends[s]);
  }
  spread(live_, [&](uint32_t s) {
    const Nfa::State& state = states[s];
    if (state.kind == Nfa::Kind::kCall) return state.lo >= dead_rules.size() || !dead_rules[state.lo];
    if (state.kind == Nfa::Kind::kSet) return !nfa_.set(state.lo).empty();
    // A ^ after characters never holds; at the start close() passes it by itself.
    return state.kind != Nfa::Kind::kEnd && state.kind != Nfa::Kind::kStart;
  });
}

// Adds what `nfa_state` reaches without a character to members_.
void LazyDfa::close(uint32_t nfa_state, bool at_start) {
  stack_.push_back(nfa_state);
  while (!stack_.empty()) {
    const uint32_t s = stack_.back();
    stack_.pop_back();
    if (marks_[s] == mark_) continue;
    marks_[s] = mark_;
    const Nfa::State& state = nfa_.states()[s];
    if (state.kind == Nfa::Kind::kSplit) {
      stack_.push_back(state.other);
      stack_.push_back(state.out);
    } else if (state.kind == Nfa::Kind::kStart) {
      if (at_start) stack_.push_back(state.out);
    } else if (live_[s]) {
      members_.push_back(s);
    }
  }
}

uint32_t LazyDfa::intern() {
  std::sort(members_.begin(), members_.end());
  uint64_t hash = 0xcbf29ce484222325u;
  for (const uint32_t member : members_) hash = (hash ^ member) * 0x9E3779B97F4A7C15u;
  const auto [begin, end] = index_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    if (states_[it->second].members == members_) return it->second;
  }
  work_ += members_.size();
  if (states_.size() >= kMaxStates || members_.size() > kMaxMembers || work_ > kMaxWork) too_large();
  State state;
  state.members = members_;
  // The matches that the end of the text would bring, through $ too.
  for (const uint32_t member : members_) {
    if (nfa_.states()[member].kind == Nfa::Kind::kMatch) state.tags.push_back(nfa_.states()[member].lo);
  }
  for (const uint32_t member : members_) {
    if (nfa_.states()[member].kind != Nfa::Kind::kEnd) continue;
    std::vector<uint32_t> pending{member}, seen;
    while (!pending.empty()) {
      const uint32_t s = pending.back();
      pending.pop_back();
      if (std::find(seen.begin(), seen.end(), s) != seen.end()) continue;
      seen.push_back(s);
      const Nfa::State& at = nfa_.states()[s];
      if (at.kind == Nfa::Kind::kMatch) state.tags.push_back(at.lo);
      if (at.kind == Nfa::Kind::kSplit || at.kind == Nfa::Kind::kEnd) pending.push_back(at.out);
      if (at.kind == Nfa::Kind::kSplit) pending.push_back(at.other);
    }
  }
  std::sort(state.tags.begin(), state.tags.end());
  state.tags.erase(std::unique(state.tags.begin(), state.tags.end()), state.tags.end());
  const auto id = static_cast<uint32_t>(states_.size());
  states_.push_back(std::move(state));
  index_.emplace(hash, id);
  return id;
}

void LazyDfa::expand(uint32_t id) {
  struct Event {
    uint32_t at;
    uint32_t range;
    bool begins;
  };
  std::vector<Event> events;
  std::vector<uint32_t> targets;  // of each range
  std::vector<Call> calls;
  const std::vector<uint32_t> members = states_[id].members;  // interning moves states_
  const auto range = [&](uint32_t lo, uint32_t hi, uint32_t out) {
    const auto number = static_cast<uint32_t>(targets.size());
    targets.push_back(out);
    events.push_back({lo, number, true});
    events.push_back({hi + 1, number, false});
  };
  for (const uint32_t member : members) {
    const Nfa::State& state = nfa_.states()[member];
    if (state.kind == Nfa::Kind::kRange) range(state.lo, state.hi, state.out);
    if (state.kind == Nfa::Kind::kSet) {
      for (const CharRange& part : nfa_.set(state.lo).ranges()) range(part.lo, part.hi, state.out);
    }
    if (state.kind == Nfa::Kind::kCall) {
      members_.clear();
      ++mark_;
      close(state.out, false);
      const uint32_t then = intern();
      if (then != kEmpty) calls.push_back({state.lo, then});
    }
  }
  std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.at < b.at; });
  std::vector<Step> steps;
  std::vector<uint32_t> active;                 // ranges over the characters from `at` on
  std::vector<uint32_t> place(targets.size());  // of each range in active
  for (size_t i = 0; i < events.size();) {
    const uint32_t at = events[i].at;
    for (; i < events.size() && events[i].at == at; ++i) {
      const uint32_t number = events[i].range;
      if (events[i].begins) {
        place[number] = static_cast<uint32_t>(active.size());
        active.push_back(number);
      } else {
        active[place[number]] = active.back();
        place[active.back()] = place[number];
        active.pop_back();
      }
    }
    if (active.empty()) continue;
    work_ += active.size();
    if (work_ > kMaxWork) too_large();
    members_.clear();
    ++mark_;
    for (const uint32_t number : active) close(targets[number], false);
    const uint32_t to = intern();
    if (to == kEmpty) continue;
    const uint32_t hi = events[i].at - 1;
    if (!steps.empty() && steps.back().to == to && steps.back().hi + 1 == at) {
      steps.back().hi = hi;
    } else {
      steps.push_back({at, hi, to});
    }
  }
  states_[id].steps = std::move(steps);
  states_[id].calls = std::move(calls);
  states_[id].expanded = true;
}

std::span<const LazyDfa::Step> LazyDfa::steps(uint32_t state) {
  if (!states_[state].expanded) expand(state);
  return states_[state].steps;
}

std::span<const LazyDfa::Call> LazyDfa::calls(uint32_t state) {
  if (!states_[state].expanded) expand(state);
  return states_[state].calls;
}

uint32_t LazyDfa::next(uint32_t state, uint32_t c) {
  const std::span<const Step> all = steps(state);
  const auto after = std::upper_bound(all.begin(), all.end(), c,
                                      [](uint32_t value, const Step& step) { return value < step.lo; });
  if (after == all.begin() || c > (after - 1)->hi) return kEmpty;
  return (after - 1)->to;
}

size_t LazyDfa::explore(size_t limit) {
  const size_t most = work_ + kMaxExploreWork;
  for (uint32_t id = 0; id < states_.size(); ++id) {
    if (states_.size() > limit || work_ > most) too_large();
    steps(id);
  }
  return states_.size();
}

}  // namespace qiao::constrain
