#include "constrain/token_table.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "base/error.h"
#include "constrain/char_set.h"
#include "constrain/chars.h"
#include "text/utf8.h"

namespace qiao::constrain {
namespace {

std::vector<std::string> texts_of(const Tokenizer& tokenizer) {
  std::vector<std::string> bytes_of(static_cast<size_t>(tokenizer.vocabulary_size()));
  for (size_t i = 0; i < bytes_of.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    bytes_of[i] = tokenizer.token_bytes(id);
    if (tokenizer.is_control(id) && !bytes_of[i].empty()) bytes_of[i] = TokenTable::spelling_of(bytes_of[i]);
  }
  return bytes_of;
}

bool is_plain(std::string_view bytes) {
  for (const char c : bytes) {
    if (static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\') return false;
  }
  return tokenization::utf8_valid(bytes.substr(0, bytes.size() - tokenization::utf8_unfinished_tail(bytes)));
}

void set_bit(std::vector<uint32_t>& words, TokenId id) {
  words[static_cast<size_t>(id) / 32] |= 1u << (static_cast<uint32_t>(id) % 32);
}
void clear_bit(std::vector<uint32_t>& words, TokenId id) {
  words[static_cast<size_t>(id) / 32] &= ~(1u << (static_cast<uint32_t>(id) % 32));
}

// What each byte does to a character that is `pending`, in text or inside a JSON string.
class CharScanner {
 public:
  explicit CharScanner(CharSpelling spelling) : spelling_(spelling) {}
  static constexpr uint32_t kDead = UINT32_MAX;  // 0: the character is whole
  uint32_t next(uint32_t pending, uint8_t byte) {
    auto [it, added] = table_.try_emplace(pending);
    if (added) {
      it->second.fill(kDead);
      CharSteps steps;
      const CharSet any = CharSet::any();
      for (const CharRange& range : any.ranges()) steps.steps.push_back({range.lo, range.hi, 0});
      Expansion expansion;
      expand_chars(
          steps, pending, spelling_, [](uint64_t) { return StateKey{}; },
          [](uint32_t part) { return StateKey{.pending = part}; }, expansion);
      for (const Expansion::Edge& edge : expansion.edges) {
        for (uint32_t b = edge.lo; b <= edge.hi; ++b) it->second[b] = edge.to.pending;
      }
    }
    return it->second[byte];
  }

 private:
  CharSpelling spelling_;
  std::unordered_map<uint32_t, std::array<uint32_t, 256>> table_;
};

}  // namespace

TokenTable::TokenTable(const Tokenizer& tokenizer) : TokenTable(tokenizer, tokenizer.end_of_generation()) {}

TokenTable::TokenTable(const Tokenizer& tokenizer, std::vector<TokenId> ends)
    : TokenTable(texts_of(tokenizer), std::move(ends)) {}

TokenTable::TokenTable(const std::vector<std::string>& bytes_of, std::vector<TokenId> ends)
    : size_(static_cast<int64_t>(bytes_of.size())), ends_(std::move(ends)) {
  static std::atomic<uint64_t> next_id{1};
  id_ = next_id++;
  std::erase_if(ends_, [&](TokenId id) { return id < 0 || id >= size_; });
  build(bytes_of);
  scan_strings();
  scan_text();
}

bool TokenTable::is_end(TokenId id) const { return std::find(ends_.begin(), ends_.end(), id) != ends_.end(); }

std::optional<TokenId> TokenTable::control_token(std::string_view text) const {
  const auto found = controls_.find(std::string(text));
  if (found == controls_.end()) return std::nullopt;
  return found->second;
}

bool TokenTable::continues(std::string_view bytes, const std::array<uint64_t, 4>& next) const {
  uint32_t node = 0;
  for (const char c : bytes) {
    const uint32_t end = nodes_[node].skip;
    uint32_t child = node + 1;
    while (child < end && nodes_[child].byte != static_cast<uint8_t>(c)) child = nodes_[child].skip;
    if (child >= end) return false;
    node = child;
  }
  for (uint32_t child = node + 1; child < nodes_[node].skip; child = nodes_[child].skip) {
    const uint8_t byte = nodes_[child].byte;
    if ((next[byte / 64] >> (byte % 64) & 1) != 0) return true;
  }
  return false;
}

void TokenTable::build(const std::vector<std::string>& bytes_of) {
  std::vector<TokenId> order;
  plain_words_.assign(words(), 0);
  std::vector<bool> plain(bytes_of.size());
  for (size_t i = 0; i < bytes_of.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    offsets_.push_back(static_cast<uint32_t>(bytes_.size()));
    bytes_ += bytes_of[i];
    if (bytes_of[i].empty() || bytes_of[i].size() > kMaxTokenBytes || is_end(id)) continue;
    order.push_back(id);
    if (bytes_of[i].size() > 2 && bytes_of[i].front() == kControlBegin && bytes_of[i].back() == kControlEnd) {
      controls_.emplace(bytes_of[i].substr(1, bytes_of[i].size() - 2), id);
    }
    plain[i] = is_plain(bytes_of[i]);
    if (plain[i]) set_bit(plain_words_, id);
  }
  offsets_.push_back(static_cast<uint32_t>(bytes_.size()));
  std::sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
    return bytes_of[static_cast<size_t>(a)] < bytes_of[static_cast<size_t>(b)];
  });
  std::vector<uint32_t> path{0};  // nodes from the root to the last token's
  nodes_.push_back({0, 0, 0, 0, true});
  const auto close_to = [&](size_t depth) {
    for (; path.size() > depth + 1; path.pop_back()) {
      Node& node = nodes_[path.back()];
      node.skip = static_cast<uint32_t>(nodes_.size());
      if (!node.all_plain) nodes_[path[path.size() - 2]].all_plain = false;
    }
  };
  std::string_view last;
  for (const TokenId id : order) {
    const std::string_view bytes = bytes_of[static_cast<size_t>(id)];
    const size_t shared = static_cast<size_t>(
        std::mismatch(bytes.begin(), bytes.end(), last.begin(), last.end()).first - bytes.begin());
    close_to(shared);
    for (size_t at = shared; at < bytes.size(); ++at) {
      path.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back({0, static_cast<uint32_t>(tokens_.size()), static_cast<uint16_t>(at + 1),
                        static_cast<uint8_t>(bytes[at]), true});
    }
    tokens_.push_back(id);
    if (!plain[static_cast<size_t>(id)]) nodes_[path.back()].all_plain = false;
    last = bytes;
  }
  close_to(0);
  nodes_[0].skip = static_cast<uint32_t>(nodes_.size());
  nodes_.push_back(
      {static_cast<uint32_t>(nodes_.size() + 1), static_cast<uint32_t>(tokens_.size()), 0, 0, true});
}

void TokenTable::scan_strings() {
  struct Level {
    uint32_t pending, characters;
  };
  CharScanner scanner(CharSpelling::kJson);
  std::vector<Level> levels(kMaxTokenBytes + 1);
  string_words_.assign(words(), 0);
  const uint32_t end = nodes_[0].skip;
  for (uint32_t n = 1; n < end;) {
    const Node& node = nodes_[n];
    const Level above = levels[node.depth - 1];
    const bool closes = above.pending == 0 && node.byte == '"';
    const uint32_t pending = closes ? 0 : scanner.next(above.pending, node.byte);
    if (pending == CharScanner::kDead) {
      n = node.skip;
      continue;
    }
    Level& here = levels[node.depth];
    here = {pending, above.characters + (!closes && above.pending == 0 ? 1 : 0)};
    for (const TokenId id : tokens_at(n)) {
      set_bit(string_words_, id);
      in_string_.push_back({here.characters, id, closes});
      longest_ = std::max(longest_, here.characters);
    }
    if (!closes) {
      ++n;
      continue;
    }
    if (has_children(n)) closings_.push_back({here.characters, n});
    n = node.skip;
  }
  for (const InString& token : in_string_) {
    if (token.closes) closing_tokens_.push_back(token);
  }
  std::stable_sort(in_string_.begin(), in_string_.end(),
                   [](const InString& a, const InString& b) { return a.characters > b.characters; });
}

std::shared_ptr<const LocalMask> TokenTable::any_string(uint32_t need, uint32_t room) const {
  need = std::min(need, longest_ + 1);
  room = std::min(room, longest_);
  const uint64_t key = uint64_t{need} << 32 | room;
  const std::lock_guard lock(mutex_);
  if (const auto found = any_strings_.find(key); found != any_strings_.end()) return found->second;
  auto mask = std::make_shared<LocalMask>();
  mask->words = string_words_;
  for (const InString& token : in_string_) {
    if (token.characters <= room) break;
    clear_bit(mask->words, token.token);
  }
  for (const InString& token : closing_tokens_) {
    if (token.characters < need) clear_bit(mask->words, token.token);
  }
  for (const Closing& closing : closings_) {
    if (closing.characters >= need && closing.characters <= room) mask->returns.push_back(closing.node);
  }
  constexpr size_t kMaxKept = 512;
  if (any_strings_.size() >= kMaxKept) any_strings_.clear();
  any_strings_.emplace(key, mask);
  return mask;
}

void TokenTable::scan_text() {
  CharScanner scanner(CharSpelling::kUtf8);
  std::vector<uint32_t> pending(kMaxTokenBytes + 1);
  text_words_.assign(words(), 0);
  for (uint32_t n = 1; n < nodes_[0].skip;) {
    const Node& node = nodes_[n];
    pending[node.depth] = scanner.next(pending[node.depth - 1u], node.byte);
    if (pending[node.depth] == CharScanner::kDead) {
      n = node.skip;
      continue;
    }
    for (const TokenId id : tokens_at(n)) set_bit(text_words_, id);
    ++n;
  }
}

void TokenTable::clear_below(std::vector<uint32_t>& words, uint32_t node) const {
  const uint32_t end = nodes_[nodes_[node].skip].first_token;
  for (uint32_t t = nodes_[node].first_token; t < end; ++t) clear_bit(words, tokens_[t]);
}

std::shared_ptr<const LocalMask> TokenTable::free_text(const StopFinder& stops, uint16_t at) const {
  const std::string key = fmt::format("{} {}", at, stops.signature());
  const std::lock_guard lock(mutex_);
  if (const auto found = free_texts_.find(key); found != free_texts_.end()) return found->second;
  constexpr size_t kMaxKept = 512;
  if (free_texts_.size() >= kMaxKept) free_texts_.clear();
  std::vector<uint16_t> states(kMaxTokenBytes + 1);
  // Takes away the tokens that complete a text; `all`: else only those for which it matters what came before.
  const auto without = [&](uint16_t from, bool all, std::vector<uint32_t>& words) {
    states[0] = from;
    for (uint32_t n = 1; n < nodes_[0].skip;) {
      const Node& node = nodes_[n];
      const uint16_t state = states[node.depth] = stops.next(states[node.depth - 1u], node.byte);
      if (state == StopFinder::kFound) {
        clear_below(words, n);
        n = node.skip;
      } else {
        n = all || stops.depth(state) > node.depth ? n + 1 : node.skip;
      }
    }
  };
  auto& root = free_texts_[fmt::format("{} {}", StopFinder::kStart, stops.signature())];
  if (root == nullptr) {
    auto mask = std::make_shared<LocalMask>();
    mask->words = text_words_;
    without(StopFinder::kStart, /*all=*/true, mask->words);
    root = mask;
  }
  if (at == StopFinder::kStart) return root;
  auto mask = std::make_shared<LocalMask>();
  mask->words = root->words;
  without(at, /*all=*/false, mask->words);
  free_texts_.emplace(key, mask);
  return mask;
}

}  // namespace qiao::constrain
