// What a row teaches: tokens, and which of them carry loss.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/tokenizer.h"
#include "train/rows.h"

namespace qiao::train {

struct Document {
  std::vector<int32_t> tokens;
  // By token: whether the model is to learn to write it. Empty: every one. The first never carries loss.
  std::vector<bool> learned;
  bool whole = false;  // true: stays in one sequence; false: may go on in the next

  bool learns(size_t token) const { return learned.empty() || learned[token]; }
};

// Makes documents of one kind of training's rows. Not thread-safe.
class DocumentMaker {
 public:
  virtual ~DocumentMaker() = default;
  // One, or those that are taught together (the two of a pair). Throws Error saying what is wrong with the
  // row and what was expected.
  virtual std::vector<Document> make(const Row& row) = 0;
};

// The list of token ids `tokens`, each of which must be below `vocabulary`; throws Error(kInvalidInput)
// naming `field`.
std::vector<int32_t> read_token_ids(const Json& tokens, std::string_view field, int64_t vocabulary);

// {"text": "…"} (encoded, with the end-of-sequence token where the tokenizer has one and the text ends with
// the row) and {"tokens": [ids]}: every token carries loss.
class PlainDocuments final : public DocumentMaker {
 public:
  // `tokenizer` may be null: rows must hold tokens then. It outlives this.
  PlainDocuments(const Tokenizer* tokenizer, int64_t vocabulary)
      : tokenizer_(tokenizer), vocabulary_(vocabulary) {}
  std::vector<Document> make(const Row& row) override;

 private:
  const Tokenizer* tokenizer_;
  int64_t vocabulary_;
};

}  // namespace qiao::train
