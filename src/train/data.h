// Rows of JSON Lines files as packed batches of tokens.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/file.h"
#include "models/decoder_training.h"
#include "text/tokenizer.h"

namespace qiao::train {

struct DataOptions {
  std::vector<std::filesystem::path> files;
  int64_t sequence = 512;  // tokens of a packed sequence
  int64_t vocabulary_size = 0;
  bool shuffle = true;  // a new order of the rows each epoch, by the seed
  uint64_t seed = 0;
  int64_t most_bad_rows = 100;  // more end the run
};

// Where reading stands: what a checkpoint keeps.
struct DataPosition {
  int64_t epoch = 0, row = 0;  // the row of the epoch's order that comes next, or goes on
  int64_t offset = 0;          // tokens of it that are used up
};

// A batch and its memory; see PackedBatch.
struct TokenBatch {
  std::vector<int32_t> tokens, positions, labels, starts;
  int64_t labelled = 0;  // labels that carry loss
  PackedBatch view() const { return {tokens, positions, labels, starts}; }
};

// Rows are {"tokens": [ids]} or {"text": "…"} (encoded, with the end-of-sequence token where the tokenizer
// has one). Each is a document: positions restart, attention and labels stay inside. Sequences are filled to
// the last token; what does not fit in one goes on in the next. Not thread-safe.
class DataStream {
 public:
  // Finds the rows. Without a tokenizer (null) rows must hold tokens. `warn` gets one line for each bad row:
  // file, line, what was expected. Throws Error(kNotFound) or Error(kInvalidInput) where a file is missing or
  // no row is any good.
  DataStream(DataOptions options, const Tokenizer* tokenizer, std::function<void(const std::string&)> warn);

  // The next `sequences` sequences, over epochs without end.
  TokenBatch next(int64_t sequences);
  const DataPosition& position() const { return position_; }
  // Throws Error(kInvalidInput) for a place that the files do not have.
  void set_position(const DataPosition& position);
  int64_t sequence() const { return options_.sequence; }
  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  int64_t bad_rows() const { return bad_rows_; }

 private:
  struct Row {
    size_t file;
    int64_t line, begin, bytes;  // of the file
  };
  void find_rows(size_t file);
  void make_order();
  // The document of the row that comes next; empty where it is bad.
  std::vector<int32_t> read(const Row& row);
  void refuse(const Row& row, const std::string& what);

  DataOptions options_;
  const Tokenizer* tokenizer_;
  std::function<void(const std::string&)> warn_;
  std::vector<MappedFile> files_;
  std::vector<Row> rows_;
  std::vector<uint32_t> order_;
  DataPosition position_;
  std::vector<int32_t> document_;  // of position_
  std::vector<bool> is_bad_;       // by row, once told
  int64_t bad_rows_ = 0;
};

}  // namespace qiao::train
