#include "constrain/machine.h"

#include <algorithm>

#include "base/error.h"

namespace qiao::constrain {

size_t Machine::KeyHash::operator()(const StateKey& key) const {
  uint64_t hash = key.kind;
  for (const uint32_t part : {key.a, key.b, key.c, key.pending}) {
    hash = (hash ^ part) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 29;
  }
  return hash;
}

Machine::Machine(std::unique_ptr<Automaton> automaton, const MachineLimits& limits)
    : automaton_(std::move(automaton)), limits_(limits) {
  stacks_ = {{kNone, kNone, 0}, {kNone, kNone, 0}};  // kBottom, kBase
  positions_.emplace_back();                         // kDead
  ThreadSet set;
  close(state_of(automaton_->start()), kBottom, set);
  start_ = intern(set);
}

void Machine::check_size() const {
  if (states_.size() + stacks_.size() + positions_.size() > limits_.max_states) {
    throw_error(ErrorKind::kTooLarge, "the constraint's automaton grew over {} states; simplify it",
                limits_.max_states);
  }
}

Machine::StateId Machine::state_of(const StateKey& key) {
  if (const auto known = state_index_.find(key); known != state_index_.end()) return known->second;
  check_size();
  const auto id = static_cast<StateId>(states_.size());
  state_index_.emplace(key, id);
  keys_.push_back(key);
  states_.emplace_back();
  return id;
}

const Machine::State& Machine::expanded(StateId id) {
  if (states_[id].expanded) return states_[id];
  Expansion& made = expansion_;
  made.edges.clear();
  made.calls.clear();
  made.final = keys_[id] == kReturn;
  if (!made.final) automaton_->expand(keys_[id], made);
  if (made.edges.size() > UINT16_MAX || made.calls.size() > UINT16_MAX) {
    throw_error(ErrorKind::kTooLarge, "the constraint has a state of over {} alternatives", UINT16_MAX);
  }
  State state;
  state.expanded = true;
  state.final = made.final;
  state.first_edge = static_cast<uint32_t>(edges_.size());
  state.first_call = static_cast<uint32_t>(calls_.size());
  state.edges = static_cast<uint16_t>(made.edges.size());
  state.calls = static_cast<uint16_t>(made.calls.size());
  for (const Expansion::Edge& edge : made.edges) {
    const StateId to = state_of(edge.to);
    edges_.push_back({edge.lo, edge.hi, to, edge.calls ? state_of(edge.then) : kNone});
  }
  for (const Expansion::Call& call : made.calls) {
    const StateId to = state_of(call.to);
    calls_.push_back({to, state_of(call.then)});
  }
  states_[id] = state;
  make_table(id);
  return states_[id];
}

// From a byte to its edge, where there is at most one for each and scanning them would be slower.
void Machine::make_table(StateId id) {
  State& state = states_[id];
  if (state.edges < 4 || state.edges > 250) return;
  std::array<uint8_t, 256> table{};
  for (uint32_t e = 0; e < state.edges; ++e) {
    const Edge& edge = edges_[state.first_edge + e];
    for (uint32_t b = edge.lo; b <= edge.hi; ++b) {
      if (table[b] != 0) return;
      table[b] = static_cast<uint8_t>(e + 1);
    }
  }
  state.table = static_cast<uint32_t>(byte_edges_.size());
  byte_edges_.insert(byte_edges_.end(), table.begin(), table.end());
}

bool Machine::only_returns(StateId id) {
  const State& state = expanded(id);
  return state.final && state.edges == 0 && state.calls == 0;
}

Machine::StackId Machine::push(StateId then, StackId below) {
  // A call whose return only returns needs no entry: right recursion does not deepen the stack.
  if (only_returns(then)) return below;
  const uint64_t key = uint64_t{then} << 32 | below;
  if (const auto known = stack_index_.find(key); known != stack_index_.end()) return known->second;
  const uint32_t depth = stacks_[below].depth + 1;
  if (depth > limits_.max_depth) {
    throw_error(ErrorKind::kTooLarge, "the text is nested deeper than {} levels of the constraint",
                limits_.max_depth);
  }
  check_size();
  const auto id = static_cast<StackId>(stacks_.size());
  stack_index_.emplace(key, id);
  stacks_.push_back({then, below, depth});
  return id;
}

void Machine::close(StateId first, StackId first_stack, ThreadSet& out) {
  const size_t base = pending_.size();
  // Each pair is gone through once: those that were, stand in pending_ behind `done`.
  pending_.push_back({first, first_stack});
  for (size_t done = base; done < pending_.size(); ++done) {
    const Thread at = pending_[done];
    const State state = expanded(at.state);
    const auto follow = [&](const Thread& thread) {
      if (std::find(pending_.begin() + static_cast<ptrdiff_t>(base), pending_.end(), thread) ==
          pending_.end()) {
        pending_.push_back(thread);
      }
    };
    if (state.edges > 0 && std::find(out.threads.begin(), out.threads.end(), at) == out.threads.end()) {
      out.threads.push_back(at);
    }
    if (state.final) {
      if (at.stack == kBottom || at.stack == kBase) {
        out.ended = true;
      } else {
        follow({stacks_[at.stack].then, stacks_[at.stack].below});
      }
    }
    for (uint32_t c = 0; c < state.calls; ++c) {
      const Call call = calls_[state.first_call + c];
      follow({call.to, push(call.then, at.stack)});
    }
    if (pending_.size() - base > limits_.max_threads || out.threads.size() > limits_.max_threads) {
      pending_.resize(base);
      throw_error(ErrorKind::kTooLarge, "the constraint is too ambiguous: over {} alternatives at one place",
                  limits_.max_threads);
    }
  }
  pending_.resize(base);
}

void Machine::step_threads(std::span<const Thread> from, uint8_t byte, ThreadSet& out) {
  out.clear();
  const auto follow = [&](const Thread& thread, const Edge& edge) {
    const StackId stack = edge.then == kNone ? thread.stack : push(edge.then, thread.stack);
    const State& to = expanded(edge.to);
    // The common case by itself: a state that only bytes lead out of.
    if (!to.final && to.calls == 0) {
      const Thread next{edge.to, stack};
      if (out.threads.empty() ||
          std::find(out.threads.begin(), out.threads.end(), next) == out.threads.end()) {
        out.threads.push_back(next);
      }
    } else {
      close(edge.to, stack, out);
    }
  };
  for (const Thread& thread : from) {
    const State state = expanded(thread.state);
    if (state.table != kNone) {
      const uint8_t e = byte_edges_[state.table + byte];
      if (e != 0) follow(thread, Edge(edges_[state.first_edge + e - 1]));
      continue;
    }
    for (uint32_t e = 0; e < state.edges; ++e) {
      const Edge edge = edges_[state.first_edge + e];
      if (edge.lo <= byte && byte <= edge.hi) follow(thread, edge);
    }
  }
}

Machine::Position Machine::intern(ThreadSet& set) {
  if (!set.alive()) return kDead;
  std::sort(set.threads.begin(), set.threads.end());
  uint64_t hash = set.ended ? 1 : 2;
  for (const Thread& thread : set.threads) {
    hash = (hash ^ (uint64_t{thread.state} << 32 | thread.stack)) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 31;
  }
  const auto [begin, end] = position_index_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    const PositionInfo& known = positions_[it->second];
    if (known.can_end == set.ended && known.threads == set.threads) return it->second;
  }
  check_size();
  const auto id = static_cast<Position>(positions_.size());
  positions_.push_back({set.threads, set.ended});
  position_index_.emplace(hash, id);
  return id;
}

Machine::Position Machine::step(Position from, uint8_t byte) {
  if (from == kDead) return kDead;
  const uint64_t key = uint64_t{from} << 8 | byte;
  if (const auto found = steps_.find(key); found != steps_.end()) return found->second;
  const std::vector<Thread> threads = positions_[from].threads;
  pending_.clear();  // what an Error left
  step_threads(threads, byte, stepped_);
  const Position to = intern(stepped_);
  constexpr size_t kMaxKept = size_t{1} << 20;
  if (steps_.size() >= kMaxKept) steps_.clear();
  steps_.emplace(key, to);
  return to;
}

std::array<uint64_t, 4> Machine::next_bytes(Position at) {
  std::array<uint64_t, 4> bytes{};
  for (size_t t = 0; t < positions_[at].threads.size(); ++t) {
    const State state = expanded(positions_[at].threads[t].state);
    for (uint32_t e = 0; e < state.edges; ++e) {
      const Edge& edge = edges_[state.first_edge + e];
      for (uint32_t b = edge.lo; b <= edge.hi; ++b) bytes[b / 64] |= uint64_t{1} << (b % 64);
    }
  }
  return bytes;
}

size_t Machine::bytes() const {
  size_t total = states_.size() * (sizeof(State) + 2 * sizeof(StateKey) + 32) + edges_.size() * sizeof(Edge) +
                 byte_edges_.size() + stacks_.size() * 48 + positions_.size() * 96 + steps_.size() * 32;
  for (const auto& [id, cache] : masks_) total += cache.bytes;
  return total;
}

}  // namespace qiao::constrain
