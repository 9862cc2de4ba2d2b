// A tokenizer's vocabulary as a trie over bytes, made once and shared by every constraint on that tokenizer.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "constrain/stop_finder.h"
#include "text/tokenizer.h"

namespace qiao::constrain {

// The tokens that one state of an automaton allows, as far as the state's own call decides: for the rest of a
// token whose bytes return from the call, `returns` lists the trie's nodes where they do.
struct LocalMask {
  std::vector<uint32_t> words;    // a bit a token, set = allowed; empty where `tokens` lists them
  std::vector<TokenId> tokens;    // instead of words, where they are few
  std::vector<uint32_t> returns;  // nodes with children

  size_t bytes() const { return 4 * (words.size() + tokens.size() + returns.size()) + sizeof *this; }
};

class TokenTable {
 public:
  // In the order of a depth-first walk: the children of node n are n+1, skip of n+1, … up to skip of n.
  struct Node {
    uint32_t skip;         // the first node after this one's subtree
    uint32_t first_token;  // its tokens are tokens()[first_token … first_token of the next node)
    uint16_t depth;        // bytes from the root
    uint8_t byte;
    bool all_plain;  // every token at it and below is plain text
  };
  static constexpr size_t kMaxTokenBytes = 1024;  // a longer token is never allowed

  // Control tokens stand in the trie as spelling_of() their text.
  explicit TokenTable(const Tokenizer& tokenizer);
  // The same, where generation ends at `ends`.
  TokenTable(const Tokenizer& tokenizer, std::vector<TokenId> ends);
  // For tests, and vocabularies that are no tokenizer's: bytes of each id (empty: never allowed), and the ids
  // at which generation ends.
  TokenTable(const std::vector<std::string>& bytes_of, std::vector<TokenId> ends);

  int64_t size() const { return size_; }
  size_t words() const { return (static_cast<size_t>(size_) + 31) / 32; }
  const std::vector<Node>& nodes() const {
    return nodes_;
  }  // nodes()[0] is the root; one more closes the list
  std::span<const TokenId> tokens_at(uint32_t node) const {
    return std::span(tokens_).subspan(nodes_[node].first_token,
                                      nodes_[node + 1].first_token - nodes_[node].first_token);
  }
  bool has_children(uint32_t node) const { return nodes_[node].skip > node + 1; }
  std::string_view bytes_of(TokenId id) const {
    const auto i = static_cast<size_t>(id);
    return std::string_view(bytes_).substr(offsets_[i], offsets_[i + 1] - offsets_[i]);
  }
  const std::vector<TokenId>& ends() const { return ends_; }
  bool is_end(TokenId id) const;

  // A control token in an automaton's bytes: as no text can be, for these bytes never occur in UTF-8.
  static constexpr char kControlBegin = '\xFF', kControlEnd = '\xFE';
  static std::string spelling_of(std::string_view control) {
    return kControlBegin + std::string(control) + kControlEnd;
  }
  // Whether some token begins with `bytes` and goes on with one of `next` (a bit a byte).
  bool continues(std::string_view bytes, const std::array<uint64_t, 4>& next) const;
  // The control token of that text, if it is none at which generation ends.
  std::optional<TokenId> control_token(std::string_view text) const;

  // Tokens of characters that may stand in a JSON string as they are; the last may be unfinished.
  const std::vector<uint32_t>& plain_words() const { return plain_words_; }
  // The mask inside a JSON string that may hold any characters, at least `need` and at most `room` more.
  std::shared_ptr<const LocalMask> any_string(uint32_t need, uint32_t room) const;
  // The mask of text, whole or with an unfinished character at its end, that completes none of `stops` when
  // it follows what brought the finder to `at`.
  std::shared_ptr<const LocalMask> free_text(const StopFinder& stops, uint16_t at) const;
  // Different for each table: what caches of masks are keyed by.
  uint64_t id() const { return id_; }

 private:
  // How far a token comes inside a JSON string: the characters that it begins, and whether it closes the
  // string.
  struct InString {
    uint32_t characters;
    TokenId token;
    bool closes;
  };
  struct Closing {
    uint32_t characters;
    uint32_t node;
  };
  void build(const std::vector<std::string>& bytes_of);
  void scan_strings();
  void scan_text();
  void clear_below(std::vector<uint32_t>& words, uint32_t node) const;

  int64_t size_ = 0;
  uint64_t id_ = 0;
  std::vector<Node> nodes_;
  std::vector<TokenId> tokens_;
  std::string bytes_;
  std::vector<uint32_t> offsets_;
  std::vector<TokenId> ends_;
  std::unordered_map<std::string, TokenId> controls_;
  std::vector<uint32_t> plain_words_;
  std::vector<uint32_t> text_words_;    // all tokens of UTF-8
  std::vector<uint32_t> string_words_;  // all tokens allowed in a string without bounds
  std::vector<InString> in_string_;     // the same, longest first
  std::vector<InString> closing_tokens_;
  std::vector<Closing> closings_;
  uint32_t longest_ = 0;
  mutable std::mutex mutex_;
  mutable std::unordered_map<uint64_t, std::shared_ptr<const LocalMask>> any_strings_;
  mutable std::unordered_map<std::string, std::shared_ptr<const LocalMask>> free_texts_;
};

}  // namespace qiao::constrain
