// What an answer must look like, in tokens of its model: which may come next, and which must.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "constrain/constraint.h"
#include "infer/language_model.h"

namespace qiao {

// Copied in no time: a copy is what to go ahead with and forget. Methods throw Error(kTooLarge) where the
// constraint's automaton meets a limit.
class AnswerConstraint {
 public:
  // `never_ends`: tokens that end generation are not allowed, even where the text is complete.
  AnswerConstraint(std::shared_ptr<constrain::CompiledGrammar> grammar, const LanguageModel& model,
                   bool never_ends);

  // False: the token cannot come next, and nothing changed.
  bool accept(TokenId id);
  bool can_end() const { return state_.can_end(); }
  bool must_end() const { return state_.must_end(); }
  // Bit t of [ceil(V / 32)] words is set where token t may come next; V is the model's.
  void mask(std::span<uint32_t> words) const;
  // The tokens that must come next, at most `most`, as the model's tokenizer writes them behind `before`
  // (prompt and answer so far). A last one that could as well be the begin of a longer one is left to be
  // drawn.
  std::vector<TokenId> forced(std::span<const TokenId> before, size_t most) const;

 private:
  // `text` in tokens, as it stands behind `before`; empty where the tokenizer writes it in no such way.
  std::vector<TokenId> encode_behind(std::span<const TokenId> before, std::string_view text) const;
  bool spells(std::span<const TokenId> ids, std::string_view text) const;

  const LanguageModel* model_;
  std::shared_ptr<const constrain::TokenTable> table_;
  bool never_ends_;
  constrain::ConstraintState state_;
};

}  // namespace qiao
