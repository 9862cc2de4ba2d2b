#include "infer/answer_constraint.h"

#include <algorithm>

#include "base/error.h"

namespace qiao {

using constrain::TokenTable;

namespace {

constexpr size_t kContextTokens = 8;  // so many decide how the text behind them is cut

}  // namespace

AnswerConstraint::AnswerConstraint(std::shared_ptr<constrain::CompiledGrammar> grammar,
                                   const LanguageModel& model, bool never_ends)
    : model_(&model),
      table_(model.token_table()),
      never_ends_(never_ends),
      state_(std::move(grammar), table_) {}

bool AnswerConstraint::accept(TokenId id) {
  if (never_ends_ && table_->is_end(id)) return false;
  return state_.accept_token(id);
}

void AnswerConstraint::mask(std::span<uint32_t> words) const {
  QIAO_ASSERT(words.size() >= table_->words());
  state_.mask(words.first(table_->words()));
  // Rows of the model's last matrix beyond the vocabulary are no tokens.
  std::fill(words.begin() + static_cast<std::ptrdiff_t>(table_->words()), words.end(), 0);
  if (!never_ends_) return;
  for (const TokenId end : table_->ends())
    words[static_cast<size_t>(end) / 32] &= ~(1u << (static_cast<uint32_t>(end) % 32));
}

bool AnswerConstraint::spells(std::span<const TokenId> ids, std::string_view text) const {
  for (const TokenId id : ids) {
    const std::string_view bytes = table_->bytes_of(id);
    if (!text.starts_with(bytes)) return false;
    text.remove_prefix(bytes.size());
  }
  return text.empty();
}

std::vector<TokenId> AnswerConstraint::encode_behind(std::span<const TokenId> before,
                                                     std::string_view text) const {
  const Tokenizer& tokenizer = model_->tokenizer();
  const EncodeOptions plain{.add_special = false, .parse_special = false};
  // A control token stands by itself.
  size_t known = 0;
  while (known < std::min(before.size(), kContextTokens) &&
         !tokenizer.is_control(before[before.size() - 1 - known])) {
    ++known;
  }
  std::string context;
  for (const TokenId id : before.last(known)) context += tokenizer.token_bytes(id);
  // Behind a line end, since some tokenizers write a space before the first word; without the context where
  // what was drawn is not how the tokenizer would have written it.
  struct Anchor {
    std::string_view text;
    bool context;
  };
  for (const Anchor anchor : {Anchor{"", true}, {"\n", true}, {"\n", false}, {".", false}}) {
    if (anchor.text.empty() && known == 0) continue;
    std::vector<TokenId> lead = tokenizer.encode(anchor.text, plain);
    std::string all(anchor.text);
    if (anchor.context) {
      lead.insert(lead.end(), before.end() - static_cast<std::ptrdiff_t>(known), before.end());
      all += context;
    }
    const std::vector<TokenId> ids = tokenizer.encode(all.append(text), plain);
    if (ids.size() <= lead.size() || !std::equal(lead.begin(), lead.end(), ids.begin())) continue;
    std::vector<TokenId> rest(ids.begin() + static_cast<std::ptrdiff_t>(lead.size()), ids.end());
    if (spells(rest, text)) return rest;
  }
  return {};
}

std::vector<TokenId> AnswerConstraint::forced(std::span<const TokenId> before, size_t most) const {
  const std::string bytes = state_.forced_bytes();
  std::vector<TokenId> forced;
  if (bytes.empty()) return forced;
  const std::span<const TokenId> near = before.last(std::min(before.size(), kContextTokens));
  std::vector<TokenId> context(near.begin(), near.end());
  constrain::ConstraintState at = state_;
  size_t last_text = 0;  // where the tokens of the last piece of text begin
  for (size_t begin = 0; begin < bytes.size();) {
    std::vector<TokenId> piece;
    const size_t end = std::min(bytes.size(), bytes[begin] == TokenTable::kControlBegin
                                                  ? bytes.find(TokenTable::kControlEnd, begin) + 1
                                                  : bytes.find(TokenTable::kControlBegin, begin));
    const std::string_view text = std::string_view(bytes).substr(begin, end - begin);
    last_text = forced.size();
    if (text.front() == TokenTable::kControlBegin) {
      const auto id = table_->control_token(text.substr(1, text.size() - 2));
      if (!id) return forced;  // cut off by the limit of forced bytes
      piece.push_back(*id);
      ++last_text;
    } else {
      piece = encode_behind(context, text);
      if (piece.empty()) return forced;
    }
    for (const TokenId id : piece) {
      if (forced.size() == most) return forced;
      if (!at.accept_token(id)) return forced;
      forced.push_back(id);
      context.push_back(id);
    }
    begin = end;
  }
  if (at.must_end()) return forced;
  // What comes next may make a longer token of the last ones.
  const std::array<uint64_t, 4> next = at.next_bytes();
  size_t keep = forced.size();
  std::string tail;
  for (size_t i = forced.size(); i > last_text; --i) {
    tail.insert(0, table_->bytes_of(forced[i - 1]));
    if (tail.size() > TokenTable::kMaxTokenBytes) break;
    if (table_->continues(tail, next)) keep = i - 1;
  }
  forced.resize(keep);
  return forced;
}

}  // namespace qiao
