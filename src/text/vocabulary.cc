#include "text/vocabulary.h"

#include <bit>
#include <cstring>

#include "base/error.h"

namespace qiao::tokenization {

uint64_t hash_bytes(std::string_view bytes) {
  uint64_t h = 0x9E3779B97F4A7C15u ^ (bytes.size() * 0xD6E8FEB86659FD93u);
  const char* p = bytes.data();
  size_t n = bytes.size();
  while (n >= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    h = (h ^ word) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
    p += 8;
    n -= 8;
  }
  uint64_t word = 0;
  if (n > 0) std::memcpy(&word, p, n);
  h = (h ^ word) * 0xD6E8FEB86659FD93u;
  h ^= h >> 29;
  h *= 0x9FB21C651E98DF25u;
  return h ^ (h >> 32);
}

void Vocabulary::reserve(size_t tokens, size_t bytes) {
  tokens_.reserve(tokens);
  bytes_.reserve(bytes);
  rehash(std::bit_ceil(std::max<size_t>(tokens * 2, 16)));
}

void Vocabulary::set(int64_t id, std::string_view spelling, std::string_view where) {
  if (id < 0 || id >= static_cast<int64_t>(kMaxTokens)) {
    throw_error(ErrorKind::kInvalidInput, "{}: token id {} is out of range [0, {})", where, id, kMaxTokens);
  }
  if (spelling.size() > kMaxTokenBytes) {
    throw_error(ErrorKind::kInvalidInput, "{}: token {} of {} bytes is over the limit of {}", where, id,
                spelling.size(), kMaxTokenBytes);
  }
  if (id >= size()) tokens_.resize(static_cast<size_t>(id) + 1);
  Token& token = tokens_[static_cast<size_t>(id)];
  token = {bytes_.size(), static_cast<uint32_t>(spelling.size())};
  bytes_ += spelling;
  longest_ = std::max(longest_, spelling.size());
  if ((used_ + 1) * 2 > slots_.size()) rehash(std::max<size_t>(slots_.size() * 2, 16));
  insert(static_cast<TokenId>(id));
}

std::string_view Vocabulary::spelling(TokenId id) const {
  if (!has(id)) return {};
  const Token& token = tokens_[static_cast<size_t>(id)];
  return std::string_view(bytes_).substr(token.offset, token.length);
}

TokenId Vocabulary::find(std::string_view spelling) const {
  if (slots_.empty() || spelling.size() > longest_) return -1;
  const uint64_t hash = hash_bytes(spelling);
  const size_t mask = slots_.size() - 1;
  for (size_t i = hash & mask;; i = (i + 1) & mask) {
    const Slot& slot = slots_[i];
    if (slot.id < 0) return -1;
    if (slot.hash == static_cast<uint32_t>(hash >> 32) && this->spelling(slot.id) == spelling) return slot.id;
  }
}

void Vocabulary::insert(TokenId id) {
  const std::string_view text = spelling(id);
  const uint64_t hash = hash_bytes(text);
  const size_t mask = slots_.size() - 1;
  for (size_t i = hash & mask;; i = (i + 1) & mask) {
    Slot& slot = slots_[i];
    if (slot.id >= 0 && (slot.hash != static_cast<uint32_t>(hash >> 32) || spelling(slot.id) != text))
      continue;
    if (slot.id < 0) ++used_;
    slot = {static_cast<uint32_t>(hash >> 32), id};
    return;
  }
}

void Vocabulary::rehash(size_t count) {
  if (count <= slots_.size()) return;
  slots_.assign(count, {});
  used_ = 0;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    if (tokens_[i].length != kGap) insert(static_cast<TokenId>(i));
  }
}

}  // namespace qiao::tokenization
