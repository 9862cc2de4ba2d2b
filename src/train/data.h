// Documents packed into batches of tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "models/decoder_training.h"
#include "train/documents.h"
#include "train/rows.h"

namespace qiao::train {

struct DataOptions : RowOptions {
  int64_t sequence = 512;  // most tokens of a packed sequence
  int64_t vocabulary_size = 0;
};

// Where reading stands.
struct DataPosition {
  int64_t epoch = 0, row = 0;  // the row of the epoch's order that comes next, or goes on
  int64_t offset = 0;          // tokens of it that are used up
};

Json to_json(const DataPosition& position);
// Throws Error(kInvalidInput) naming what is missing.
DataPosition read_position(const Json& state);

// A batch and its memory; see PackedBatch.
struct TokenBatch {
  std::vector<int32_t> tokens, positions, labels;
  std::vector<int32_t> starts = {0};
  std::vector<int32_t> sequences = {0};  // ascending, where each sequence begins, and the end
  int64_t labelled = 0;                  // labels that carry loss
  PackedBatch view() const { return {tokens, positions, labels, starts}; }

  // `count` tokens of `document` from `first`, as one document.
  void add(const Document& document, int64_t first, int64_t count);
};

// Each row is a document: positions restart, attention and labels stay inside. Documents fill sequences in
// order. One that may be split fills them to the last token and goes on in the next; a whole one that does
// not fit begins the next (the rest of the last stays empty: no padding is computed), and is cut behind its
// first `sequence` tokens. Not thread-safe.
class DataStream {
 public:
  // Throws Error as Rows does.
  DataStream(const DataOptions& options, std::unique_ptr<DocumentMaker> maker, Warn warn);

  // The next `sequences` sequences, of rows that are one document each: over epochs without end, or to the
  // end of `last_epoch`, where there may be fewer, and none.
  TokenBatch next(int64_t sequences, int64_t last_epoch = INT64_MAX);
  // All documents of the next `rows` good rows, each a sequence, cut behind its first `sequence` tokens.
  TokenBatch next_rows(int64_t rows);
  const DataPosition& position() const { return position_; }
  // Throws Error(kInvalidInput) for a place that the files do not have.
  void set_position(const DataPosition& position);
  // What a checkpoint keeps: the position, and what Rows does.
  Json state() const;
  void set_state(const Json& state);
  int64_t sequence() const { return sequence_; }
  int64_t rows() const { return rows_.size(); }
  int64_t bad_rows() const { return rows_.bad_rows(); }

  // Of the first rows of the files, as far as `most_bytes` of them reach: bad ones are told, and whole
  // documents that are longer than a sequence counted.
  struct Survey {
    int64_t rows = 0, whole = 0, too_long = 0;
  };
  Survey survey(int64_t most_bytes);

 private:
  // Of a row; none where it is bad, which is told.
  std::vector<Document> read(int64_t row);
  void check(const Document& document) const;
  void go_on();  // to the row that comes next

  Rows rows_;
  std::unique_ptr<DocumentMaker> maker_;
  int64_t sequence_, vocabulary_size_;
  DataPosition position_;
  std::vector<Document> documents_;  // of position_, once it was read
};

}  // namespace qiao::train
