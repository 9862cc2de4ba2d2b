#include "text/sentencepiece_model.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "base/error.h"

namespace qiao::tokenization {
namespace {

constexpr uint32_t kEnd = UINT32_MAX;

struct Symbol {
  uint32_t previous;
  uint32_t next;
  uint32_t offset;
  uint32_t length;  // 0: merged into a neighbour
  bool frozen;      // a user-defined piece: never merged
};

struct MergeCandidate {
  uint64_t order;  // score (highest first), then position
  uint32_t right;
  uint32_t length;
  bool operator<(const MergeCandidate& other) const { return order > other.order; }
};

// Ascending in descending score.
uint32_t rank_of(float score) {
  const auto bits = std::bit_cast<uint32_t>(score);
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return ~ascending;
}

bool has_inner_space(std::string_view piece) {
  for (size_t at = piece.find(kSpace, 1); at != std::string_view::npos; at = piece.find(kSpace, at + 1)) {
    if (at < kSpace.size() || piece.substr(at - kSpace.size(), kSpace.size()) != kSpace) return true;
  }
  return false;
}

}  // namespace

struct SentencePieceModel::Run {
  const InvalidBytes& invalid;
  // How pieces that are out of use were made, to take them apart again.
  std::unordered_map<std::string_view, std::pair<std::string_view, std::string_view>> unused;
  bool unknown_before = false;
};

SentencePieceModel::SentencePieceModel(std::shared_ptr<const Vocabulary> vocabulary,
                                       std::vector<float> scores, std::vector<PieceKind> kinds,
                                       TokenId unknown)
    : vocabulary_(std::move(vocabulary)),
      scores_(std::move(scores)),
      kinds_(std::move(kinds)),
      unknown_(unknown),
      bytes_(*vocabulary_) {
  QIAO_ASSERT(static_cast<int64_t>(scores_.size()) == vocabulary_->size() && kinds_.size() == scores_.size());
  for (size_t i = 0; i < kinds_.size(); ++i) {
    if (kinds_[i] == PieceKind::kNotMatched) continue;
    const std::string_view piece = vocabulary_->spelling(static_cast<TokenId>(i));
    if (kinds_[i] == PieceKind::kUserDefined) user_defined_.insert(piece, static_cast<TokenId>(i));
    if (words_are_independent_ && has_inner_space(piece)) words_are_independent_ = false;
  }
}

TokenId SentencePieceModel::find_piece(std::string_view text) const {
  const TokenId id = vocabulary_->find(text);
  return id >= 0 && kinds_[static_cast<size_t>(id)] != PieceKind::kNotMatched ? id : -1;
}

void SentencePieceModel::encode(std::string_view word, const InvalidBytes& invalid,
                                std::vector<TokenId>& out) const {
  std::vector<Symbol> symbols;
  symbols.reserve(std::min<size_t>(word.size(), 1 << 20));
  for (size_t at = 0; at < word.size();) {
    TokenId id;
    size_t n = user_defined_.longest_prefix(word.substr(at), &id);
    const bool frozen = n > 0;
    if (!frozen) n = std::max<size_t>(utf8_length(word, at), 1);
    const auto index = static_cast<uint32_t>(symbols.size());
    symbols.push_back({index == 0 ? kEnd : index - 1, at + n == word.size() ? kEnd : index + 1,
                       static_cast<uint32_t>(at), static_cast<uint32_t>(n), frozen});
    at += n;
  }
  Run run{invalid, {}, false};
  std::vector<MergeCandidate> heap;
  heap.reserve(symbols.size());
  const auto consider = [&](uint32_t left, uint32_t right) {
    if (left == kEnd || right == kEnd || symbols[left].frozen || symbols[right].frozen) return false;
    const uint32_t length = symbols[left].length + symbols[right].length;
    if (length > vocabulary_->longest()) return false;
    const std::string_view text = word.substr(symbols[left].offset, length);
    const TokenId id = find_piece(text);
    if (id < 0) return false;
    heap.push_back({(uint64_t{rank_of(scores_[static_cast<size_t>(id)])} << 32) | left, right, length});
    if (kinds_[static_cast<size_t>(id)] == PieceKind::kUnused) {
      run.unused[text] = {text.substr(0, symbols[left].length), text.substr(symbols[left].length)};
    }
    return true;
  };
  for (uint32_t i = 1; i < symbols.size(); ++i) consider(i - 1, i);
  std::make_heap(heap.begin(), heap.end());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const MergeCandidate top = heap.back();
    heap.pop_back();
    const auto at = static_cast<uint32_t>(top.order);
    Symbol& left = symbols[at];
    Symbol& right = symbols[top.right];
    if (left.length == 0 || right.length == 0 || left.length + right.length != top.length) continue;
    left.length += right.length;
    right.length = 0;
    left.next = right.next;
    if (left.next != kEnd) symbols[left.next].previous = at;
    if (consider(left.previous, at)) std::push_heap(heap.begin(), heap.end());
    if (consider(at, left.next)) std::push_heap(heap.begin(), heap.end());
  }
  for (uint32_t i = symbols.empty() ? kEnd : 0; i != kEnd; i = symbols[i].next) {
    const std::string_view piece = word.substr(symbols[i].offset, symbols[i].length);
    const size_t before = out.size();
    emit(piece, run, 0, out);
    // A run of unknown characters is one unknown token.
    const bool unknown = out.size() == before + 1 && out.back() == unknown_;
    if (unknown && run.unknown_before) out.pop_back();
    run.unknown_before = unknown;
  }
}

void SentencePieceModel::emit(std::string_view piece, const Run& run, int depth,
                              std::vector<TokenId>& out) const {
  const TokenId id = find_piece(piece);
  if (id >= 0) {
    const auto made = run.unused.find(piece);
    // Each step takes a shorter piece; the depth only guards the stack against absurdly long ones.
    if (kinds_[static_cast<size_t>(id)] == PieceKind::kUnused && made != run.unused.end() && depth < 1000) {
      emit(made->second.first, run, depth + 1, out);
      emit(made->second.second, run, depth + 1, out);
    } else {
      out.push_back(id);
    }
    return;
  }
  if (bytes_.append(piece, run.invalid, out)) return;
  if (unknown_ >= 0) out.push_back(unknown_);
}

}  // namespace qiao::tokenization
