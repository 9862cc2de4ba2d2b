#include "text/bpe_model.h"

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "base/quote.h"

namespace qiao::tokenization {
namespace {

constexpr char32_t kLowCharacters = 0x400;  // covers the byte alphabet
constexpr size_t kShortWord = 24;           // symbols up to which scanning for the best pair beats a heap

uint64_t pair_key(TokenId left, TokenId right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

uint64_t mix(uint64_t key) {
  key *= 0x9E3779B97F4A7C15u;
  key ^= key >> 32;
  return key * 0xD6E8FEB86659FD93u >> 16;
}

}  // namespace

BpeModel::BpeModel(std::shared_ptr<const Vocabulary> vocabulary, const std::vector<MergeText>& merges,
                   std::vector<bool> matched, BpeOptions options, bool strict, std::string_view where)
    : vocabulary_(std::move(vocabulary)),
      matched_(std::move(matched)),
      options_(std::move(options)),
      low_characters_(kLowCharacters) {
  QIAO_ASSERT(static_cast<int64_t>(matched_.size()) == vocabulary_->size());
  if (options_.byte_fallback) bytes_ = ByteTokens(*vocabulary_);
  for (char32_t c = 0; c < kLowCharacters; ++c) {
    std::string text;
    utf8_append(text, c);
    low_characters_[c] = find_matched(text);
  }
  merges_.resize(std::bit_ceil(std::max<size_t>(merges.size() * 2, 16)));
  std::string whole;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left_text, right_text] = merges[rank];
    const TokenId left = vocabulary_->find(left_text);
    const TokenId right = vocabulary_->find(right_text);
    std::string_view tail = right_text;
    if (!options_.continuing_prefix.empty() && tail.starts_with(options_.continuing_prefix)) {
      tail.remove_prefix(options_.continuing_prefix.size());
    }
    whole.assign(left_text).append(tail);
    const TokenId merged = vocabulary_->find(whole);
    if (left < 0 || right < 0 || merged < 0) {
      if (!strict) continue;
      throw_error(ErrorKind::kInvalidInput, "{}: merge {}: {} is not in the vocabulary", where, rank,
                  quote_text(left < 0    ? left_text
                             : right < 0 ? right_text
                                         : std::string_view(whole)));
    }
    insert(left, right, static_cast<uint32_t>(rank), merged, strict);
  }
}

void BpeModel::insert(TokenId left, TokenId right, uint32_t rank, TokenId merged, bool replace) {
  const uint64_t key = pair_key(left, right);
  const size_t mask = merges_.size() - 1;
  size_t i = mix(key) & mask;
  while (merges_[i].merged >= 0 && merges_[i].pair != key) i = (i + 1) & mask;
  if (merges_[i].merged >= 0 && !replace) return;
  if (merges_[i].merged < 0) ++merge_count_;
  merges_[i] = {key, rank, merged};
}

const BpeModel::Merge* BpeModel::find(TokenId left, TokenId right) const {
  const uint64_t key = pair_key(left, right);
  const size_t mask = merges_.size() - 1;
  for (size_t i = mix(key) & mask;; i = (i + 1) & mask) {
    if (merges_[i].merged < 0) return nullptr;
    if (merges_[i].pair == key) return &merges_[i];
  }
}

TokenId BpeModel::find_matched(std::string_view text) const {
  const TokenId id = vocabulary_->find(text);
  return id >= 0 && matched_[static_cast<size_t>(id)] ? id : -1;
}

TokenId BpeModel::character_token(std::string_view character, bool first, bool last) const {
  const bool prefixed = !first && !options_.continuing_prefix.empty();
  const bool suffixed = last && !options_.word_suffix.empty();
  if (!prefixed && !suffixed) {
    if (character.size() <= 2) {
      size_t n;
      const char32_t c = utf8_decode(character, 0, &n);
      if (c < kLowCharacters) return low_characters_[c];
    }
    return find_matched(character);
  }
  std::string spelling = prefixed ? options_.continuing_prefix : std::string();
  spelling += character;
  if (suffixed) spelling += options_.word_suffix;
  return find_matched(spelling);
}

void BpeModel::start(std::string_view word, const InvalidBytes& invalid,
                     std::vector<TokenId>& symbols) const {
  bool pending_unknown = false;  // held back, so that a run of unknown characters can be one
  for (size_t at = 0; at < word.size();) {
    const size_t n = std::max<size_t>(utf8_length(word, at), 1);
    const std::string_view character = word.substr(at, n);
    const TokenId id = character_token(character, at == 0, at + n == word.size());
    at += n;
    if (id >= 0) {
      if (pending_unknown) symbols.push_back(options_.unknown);
      pending_unknown = false;
      symbols.push_back(id);
      continue;
    }
    if (options_.byte_fallback && bytes_.append(character, invalid, symbols)) continue;
    if (options_.unknown < 0) continue;
    if (pending_unknown && !options_.fuse_unknown) symbols.push_back(options_.unknown);
    pending_unknown = true;
  }
  if (pending_unknown) symbols.push_back(options_.unknown);
}

void BpeModel::encode(std::string_view word, const InvalidBytes& invalid, std::vector<TokenId>& out) const {
  if (word.empty()) return;
  if (options_.ignore_merges ||
      (options_.newline_runs_whole && word.find_first_not_of('\n') == std::string_view::npos)) {
    if (const TokenId id = find_matched(word); id >= 0) {
      out.push_back(id);
      return;
    }
  }
  thread_local std::vector<TokenId> symbols;
  symbols.clear();
  start(word, invalid, symbols);
  if (symbols.size() <= kShortWord) {
    merge_short(symbols);
  } else {
    merge_long(symbols);
  }
  out.insert(out.end(), symbols.begin(), symbols.end());
  if (symbols.capacity() > (size_t{1} << 20)) std::vector<TokenId>().swap(symbols);
}

void BpeModel::merge_short(std::vector<TokenId>& symbols) const {
  const Merge* pairs[kShortWord];  // pairs[i]: of symbols i and i+1
  size_t count = symbols.size();
  for (size_t i = 0; i + 1 < count; ++i) pairs[i] = find(symbols[i], symbols[i + 1]);
  while (count > 1) {
    size_t best = count;
    uint32_t rank = UINT32_MAX;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (pairs[i] != nullptr && pairs[i]->rank < rank) {
        rank = pairs[i]->rank;
        best = i;
      }
    }
    if (best == count) break;
    symbols[best] = pairs[best]->merged;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    for (size_t i = best; i + 2 < count; ++i) pairs[i] = pairs[i + 1];
    --count;
    if (best > 0) pairs[best - 1] = find(symbols[best - 1], symbols[best]);
    if (best + 1 < count) pairs[best] = find(symbols[best], symbols[best + 1]);
  }
}

void BpeModel::merge_long(std::vector<TokenId>& symbols) const {
  struct Candidate {
    uint64_t order;  // rank << 32 | position: lowest first
    TokenId merged;
    bool operator<(const Candidate& other) const { return order > other.order; }
  };
  struct Link {
    uint32_t previous;
    uint32_t next;
  };
  constexpr uint32_t kEnd = UINT32_MAX;
  const auto count = static_cast<uint32_t>(symbols.size());
  std::vector<Link> links(count);
  std::vector<Candidate> heap;
  heap.reserve(count);
  const auto consider = [&](uint32_t left, uint32_t right) {
    const Merge* merge = find(symbols[left], symbols[right]);
    if (merge == nullptr) return false;
    heap.push_back({(uint64_t{merge->rank} << 32) | left, merge->merged});
    return true;
  };
  for (uint32_t i = 0; i < count; ++i) {
    links[i] = {i == 0 ? kEnd : i - 1, i + 1 == count ? kEnd : i + 1};
    if (i > 0) consider(i - 1, i);
  }
  std::make_heap(heap.begin(), heap.end());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate top = heap.back();
    heap.pop_back();
    const auto left = static_cast<uint32_t>(top.order);
    const uint32_t right = symbols[left] < 0 ? kEnd : links[left].next;
    if (right == kEnd) continue;
    const Merge* merge = find(symbols[left], symbols[right]);
    if (merge == nullptr || merge->merged != top.merged) continue;  // the pair has changed since
    symbols[left] = top.merged;
    symbols[right] = -1;
    links[left].next = links[right].next;
    if (links[left].next != kEnd) links[links[left].next].previous = left;
    if (links[left].previous != kEnd && consider(links[left].previous, left)) {
      std::push_heap(heap.begin(), heap.end());
    }
    if (links[left].next != kEnd && consider(left, links[left].next))
      std::push_heap(heap.begin(), heap.end());
  }
  std::erase(symbols, -1);
}

}  // namespace qiao::tokenization
