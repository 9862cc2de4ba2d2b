// Masks: a walk over the vocabulary's trie with the threads of a position. What a state allows inside its own
// call does not depend on who called it, so it is kept for each state (as XGrammar's context-independent
// tokens, Dong et al. 2024); only the rest of tokens that return from the call is walked with the whole
// stack. Where every plain text can be taken, those tokens come as one ready mask (as llguidance's slices)
// and the walk passes them by.
#include <algorithm>

#include "constrain/machine.h"

namespace qiao::constrain {
namespace {

void set_token(std::span<uint32_t> words, TokenId id) {
  words[static_cast<size_t>(id) / 32] |= 1u << (static_cast<uint32_t>(id) % 32);
}

void merge(std::span<uint32_t> words, const std::vector<uint32_t>& more) {
  for (size_t i = 0; i < words.size(); ++i) words[i] |= more[i];
}

}  // namespace

// Calls take(node) for each node below `node` that a thread of `from` comes to alive, and returned(node)
// where one returned from the base or the bottom there.
template <typename Take, typename Return>
void Machine::walk(const ThreadSet& from, uint32_t node, bool skip_plain, const TokenTable& table,
                   Take&& take, Return&& returned) {
  const auto& nodes = table.nodes();
  const uint32_t root_depth = nodes[node].depth;
  const uint32_t end = nodes[node].skip;
  if (levels_.empty()) levels_.resize(TokenTable::kMaxTokenBytes + 1);
  levels_[0] = from;
  for (uint32_t n = node + 1; n < end;) {
    const TokenTable::Node& at = nodes[n];
    if (skip_plain && at.all_plain) {
      n = at.skip;
      continue;
    }
    const size_t depth = at.depth - root_depth;
    ThreadSet& here = levels_[depth];
    step_threads(levels_[depth - 1].threads, at.byte, here);
    if (!here.alive()) {
      n = at.skip;
      continue;
    }
    take(n);
    if (here.ended) returned(n);
    n = here.threads.empty() ? at.skip : n + 1;
  }
}

// Whether the state, which no call leads out of, goes on for ever with every character that may stand in a
// string as it is.
bool Machine::takes_plain(StateId id) {
  if (states_[id].takes_plain != 0) return states_[id].takes_plain == 1;
  constexpr size_t kMaxLooked = 512;
  std::vector<StateId> group{id};
  bool all = true;
  for (size_t i = 0; i < group.size() && all; ++i) {
    const State state = expanded(group[i]);
    if (state.takes_plain == 1) continue;
    all = group.size() <= kMaxLooked && state.calls == 0 && state.takes_plain != 2;
    const uint32_t pending = keys_[group[i]].pending;
    const auto follow = [&](uint32_t b) {
      if (!all) return;
      const Edge* only = nullptr;
      uint32_t found = 0;
      for (uint32_t e = 0; e < state.edges; ++e) {
        const Edge& edge = edges_[state.first_edge + e];
        if (edge.lo > b || b > edge.hi) continue;
        only = &edge;
        ++found;
      }
      all = found == 1 && only->then == kNone;
      if (all && std::find(group.begin(), group.end(), only->to) == group.end()) group.push_back(only->to);
    };
    if (pending == 0) {
      for (uint32_t b = 0x20; b < 0x80; ++b) {
        if (b != '"' && b != '\\') follow(b);
      }
      for (uint32_t b = 0xC2; b <= 0xF4; ++b) follow(b);
      continue;
    }
    // In the midst of a character every byte that Unicode knows must go on: 64 of them, or fewer after E0,
    // ED, F0, F4.
    uint32_t taken = 0;
    for (uint32_t b = 0x80; b < 0xC0; ++b) {
      const bool here =
          std::any_of(edges_.begin() + state.first_edge, edges_.begin() + state.first_edge + state.edges,
                      [&](const Edge& edge) { return edge.lo <= b && b <= edge.hi; });
      if (!here) continue;
      ++taken;
      follow(b);
    }
    const uint32_t left = pending >> 26 & 7, bits = pending & 0x3FFFFFF;  // as chars.cc packs them
    const uint32_t whole = left == 2 && (bits == 0 || bits == 0xD) ? 32
                           : left == 3 && bits == 0                ? 48
                           : left == 3 && bits == 4                ? 16
                                                                   : 64;
    all = all && taken == whole;
  }
  for (const StateId member : group) {
    if (all) states_[member].takes_plain = 1;
  }
  if (!all) states_[id].takes_plain = 2;
  return all;
}

std::shared_ptr<const LocalMask> Machine::local_mask(StateId id, const TokenTable& table, MaskCache& cache) {
  if (const auto found = cache.local.find(id); found != cache.local.end()) return found->second;
  if (const auto bounds = automaton_->any_string(keys_[id])) {
    auto shared = table.any_string(bounds->need, bounds->room);
    cache.local.emplace(id, shared);
    return shared;
  }
  if (const auto text = automaton_->free_text(keys_[id])) {
    auto shared = table.free_text(*text->stops, text->at);
    cache.local.emplace(id, shared);
    return shared;
  }
  auto mask = std::make_shared<LocalMask>();
  ThreadSet from;
  from.threads.push_back({id, kBase});
  const bool plain = takes_plain(id);
  constexpr size_t kFew = 512;
  const auto add = [&](TokenId token) {
    if (mask->words.empty() && mask->tokens.size() < kFew) {
      mask->tokens.push_back(token);
      return;
    }
    if (mask->words.empty()) {
      mask->words.assign(table.words(), 0);
      for (const TokenId earlier : mask->tokens) set_token(mask->words, earlier);
      mask->tokens.clear();
    }
    set_token(mask->words, token);
  };
  if (plain) mask->words = table.plain_words();
  walk(
      from, 0, plain, table,
      [&](uint32_t node) {
        for (const TokenId token : table.tokens_at(node)) add(token);
      },
      [&](uint32_t node) {
        if (table.has_children(node)) mask->returns.push_back(node);
      });
  cache.bytes += mask->bytes();
  cache.local.emplace(id, mask);
  return mask;
}

void Machine::mask(Position at, const TokenTable& table, std::span<uint32_t> words) {
  MaskCache& cache = masks_[table.id()];
  if (const auto found = cache.whole.find(at); found != cache.whole.end()) {
    std::copy(found->second.begin(), found->second.end(), words.begin());
    return;
  }
  if (cache.bytes > limits_.max_mask_bytes) cache = {};
  std::fill(words.begin(), words.end(), 0);
  const PositionInfo position = positions_[at];
  for (const Thread& thread : position.threads) {
    const std::shared_ptr<const LocalMask> local = local_mask(thread.state, table, cache);
    if (!local->words.empty()) merge(words, local->words);
    for (const TokenId token : local->tokens) set_token(words, token);
    if (local->returns.empty() || thread.stack == kBottom) continue;
    ThreadSet after;
    close(stacks_[thread.stack].then, stacks_[thread.stack].below, after);
    for (const uint32_t node : local->returns) {
      walk(
          after, node, false, table,
          [&](uint32_t reached) {
            for (const TokenId token : table.tokens_at(reached)) set_token(words, token);
          },
          [](uint32_t) {});
    }
  }
  if (position.can_end) {
    for (const TokenId end : table.ends()) set_token(words, end);
  }
  cache.whole.emplace(at, std::vector<uint32_t>(words.begin(), words.end()));
  cache.bytes += 4 * words.size();
}

}  // namespace qiao::constrain
