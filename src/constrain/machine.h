// Runs an automaton over bytes: sets of threads, each a state and a stack of calls; all interned, so that a
// position in a text is one number, copied and gone back to for free.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "constrain/automaton.h"
#include "constrain/token_table.h"

namespace qiao::constrain {

struct MachineLimits {
  size_t max_threads = 4096;         // alternatives alive at once
  size_t max_states = 2'000'000;     // states, stacks and positions made in the machine's life
  size_t max_depth = 1024;           // calls inside calls
  size_t max_mask_bytes = 64 << 20;  // of cached masks; over it they are made anew
};

// Not thread-safe. Throws Error(kTooLarge) where a limit is reached.
class Machine {
 public:
  using Position = uint32_t;
  static constexpr Position kDead = 0;

  Machine(std::unique_ptr<Automaton> automaton, const MachineLimits& limits);

  Automaton& automaton() const { return *automaton_; }
  Position start() const { return start_; }
  // kDead where the byte cannot be taken.
  Position step(Position from, uint8_t byte);
  bool can_end(Position at) const { return positions_[at].can_end; }
  bool must_end(Position at) const { return positions_[at].threads.empty(); }
  // The bytes that may come next, one bit each.
  std::array<uint64_t, 4> next_bytes(Position at);
  // Sets the bits of the allowed tokens; end tokens where the text may end. words.size() must be
  // table.words().
  void mask(Position at, const TokenTable& table, std::span<uint32_t> words);
  size_t bytes() const;  // about how much memory its tables take

 private:
  using StateId = uint32_t;
  using StackId = uint32_t;
  static constexpr StackId kBottom = 0;  // of the whole text
  static constexpr StackId kBase = 1;    // of a call looked at by itself, whoever made it
  static constexpr uint32_t kNone = UINT32_MAX;

  struct Thread {
    StateId state;
    StackId stack;
    auto operator<=>(const Thread&) const =
        default;  // NOLINT(modernize-use-nullptr): it takes the default for a 0
  };
  struct ThreadSet {
    std::vector<Thread> threads;
    bool ended = false;  // a thread returned from the bottom or the base
    bool alive() const { return ended || !threads.empty(); }
    void clear() {
      threads.clear();
      ended = false;
    }
  };
  struct Edge {
    uint8_t lo, hi;
    StateId to;
    StateId then;  // kNone: no call
  };
  struct Call {
    StateId to, then;
  };
  struct State {
    uint32_t first_edge = 0, first_call = 0;
    uint32_t table = kNone;  // where its 256 bytes begin in byte_edges_
    uint16_t edges = 0, calls = 0;
    bool expanded = false, final = false;
    uint8_t takes_plain = 0;  // 0: not known yet, 1: yes, 2: no
  };
  struct Stack {
    StateId then;
    StackId below;
    uint32_t depth;
  };
  struct PositionInfo {
    std::vector<Thread> threads;
    bool can_end = false;
  };
  struct MaskCache {
    std::unordered_map<StateId, std::shared_ptr<const LocalMask>> local;
    std::unordered_map<Position, std::vector<uint32_t>> whole;
    size_t bytes = 0;
  };
  struct KeyHash {
    size_t operator()(const StateKey& key) const;
  };

  StateId state_of(const StateKey& key);
  const State& expanded(StateId id);
  void make_table(StateId id);
  bool only_returns(StateId id);
  StackId push(StateId then, StackId below);
  // The threads that (state, stack) stands for once returns and calls that need no byte are made.
  void close(StateId state, StackId stack, ThreadSet& out);
  void step_threads(std::span<const Thread> from, uint8_t byte, ThreadSet& out);
  Position intern(ThreadSet& set);
  void check_size() const;

  bool takes_plain(StateId id);
  std::shared_ptr<const LocalMask> local_mask(StateId id, const TokenTable& table, MaskCache& cache);
  template <typename Take, typename Return>
  void walk(const ThreadSet& from, uint32_t node, bool skip_plain, const TokenTable& table, Take&& take,
            Return&& returned);

  std::unique_ptr<Automaton> automaton_;
  MachineLimits limits_;
  std::vector<StateKey> keys_;
  std::vector<State> states_;
  std::unordered_map<StateKey, StateId, KeyHash> state_index_;
  std::vector<Edge> edges_;
  std::vector<Call> calls_;
  std::vector<uint8_t> byte_edges_;
  std::vector<Stack> stacks_;
  std::unordered_map<uint64_t, StackId> stack_index_;
  std::vector<PositionInfo> positions_;
  std::unordered_multimap<uint64_t, Position> position_index_;
  std::unordered_map<uint64_t, Position> steps_;
  std::unordered_map<uint64_t, MaskCache> masks_;
  Position start_ = kDead;
  // Scratch, kept for its memory.
  Expansion expansion_;
  std::vector<Thread> pending_;
  ThreadSet stepped_;
  std::vector<ThreadSet> levels_;
};

}  // namespace qiao::constrain
