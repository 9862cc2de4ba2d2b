#include "text/unigram_model.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace qiao::tokenization {
namespace {

constexpr double kUnknownPenalty = 10.0;  // below the worst piece, as SentencePiece sets it

struct Best {
  double score = 0;
  uint32_t start = UINT32_MAX;  // UINT32_MAX: no segmentation ends here yet
  TokenId id = -1;              // -1: an unknown character
};

}  // namespace

UnigramModel::UnigramModel(std::shared_ptr<const Vocabulary> vocabulary, std::vector<double> scores,
                           std::vector<bool> matched, TokenId unknown, bool byte_fallback, Sums sums,
                           std::string_view where)
    : vocabulary_(std::move(vocabulary)),
      scores_(std::move(scores)),
      matched_(std::move(matched)),
      unknown_(unknown),
      byte_fallback_(byte_fallback),
      sums_(sums),
      where_(where) {
  QIAO_ASSERT(static_cast<int64_t>(scores_.size()) == vocabulary_->size() &&
              matched_.size() == scores_.size());
  if (byte_fallback_) bytes_ = ByteTokens(*vocabulary_);
  double lowest = scores_.empty() ? 0 : scores_[0];
  for (size_t i = 0; i < scores_.size(); ++i) {
    if (!std::isfinite(scores_[i])) {
      throw_error(ErrorKind::kInvalidInput, "{}: the score of token {} is not a finite number", where, i);
    }
    lowest = std::min(lowest, scores_[i]);
    if (matched_[i]) trie_.insert(vocabulary_->spelling(static_cast<TokenId>(i)), static_cast<TokenId>(i));
  }
  unknown_score_ = lowest - kUnknownPenalty;
  if (sums_ == Sums::kFloat) unknown_score_ = static_cast<double>(static_cast<float>(unknown_score_));
}

void UnigramModel::encode(std::string_view word, const InvalidBytes& invalid,
                          std::vector<TokenId>& out) const {
  if (word.empty()) return;
  std::vector<Best> best(word.size() + 1);
  const auto offer = [&](size_t end, double score, size_t start, TokenId id) {
    if (sums_ == Sums::kFloat) score = static_cast<double>(static_cast<float>(score));
    Best& target = best[end];
    if (target.start == UINT32_MAX || score > target.score)
      target = {score, static_cast<uint32_t>(start), id};
  };
  for (size_t at = 0; at < word.size();) {
    const size_t character = std::max<size_t>(utf8_length(word, at), 1);
    const double so_far = best[at].score;
    bool single = false;
    uint32_t node = Trie::kRoot;
    for (size_t end = at; end < word.size();) {
      node = trie_.child(node, static_cast<unsigned char>(word[end]));
      if (node == Trie::kNone) break;
      ++end;
      const TokenId id = trie_.value(node);
      if (id < 0) continue;
      offer(end, so_far + scores_[static_cast<size_t>(id)], at, id);
      single |= end - at == character;
    }
    if (!single) offer(at + character, so_far + unknown_score_, at, -1);
    at += character;
  }
  // Backwards over the best path; a run of unknown characters is one piece.
  struct Step {
    uint32_t begin;
    uint32_t end;
    TokenId id;
  };
  std::vector<Step> path;
  for (auto end = static_cast<uint32_t>(word.size()); end > 0;) {
    const Best& step = best[end];
    const TokenId id = step.id == unknown_ ? -1 : step.id;
    if (id < 0 && !path.empty() && path.back().id < 0) {
      path.back().begin = step.start;
    } else {
      path.push_back({step.start, end, id});
    }
    end = step.start;
  }
  for (size_t i = path.size(); i-- > 0;) {
    if (path[i].id >= 0) {
      out.push_back(path[i].id);
      continue;
    }
    const std::string_view piece = word.substr(path[i].begin, path[i].end - path[i].begin);
    if (const TokenId id = vocabulary_->find(piece); id >= 0 && matched_[static_cast<size_t>(id)]) {
      out.push_back(id);
      continue;
    }
    if (byte_fallback_) {
      const size_t before = out.size();
      size_t at = 0;
      while (at < piece.size()) {
        const size_t n = std::max<size_t>(utf8_length(piece, at), 1);
        if (!bytes_.append(piece.substr(at, n), invalid, out)) break;
        at += n;
      }
      if (at == piece.size()) continue;
      out.resize(before);
    }
    if (unknown_ < 0) {
      throw_error(ErrorKind::kInvalidInput,
                  "{}: the text has a character that no piece covers, and there is no unknown token", where_);
    }
    out.push_back(unknown_);
  }
}

}  // namespace qiao::tokenization
