// Rows of files, in the order in which epochs read them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"

namespace qiao::train {

struct RowOptions {
  std::vector<std::filesystem::path> files;  // see Rows
  bool shuffle = true;                       // a new order of the rows each epoch, by the seed
  uint64_t seed = 0;
  int64_t most_bad_rows = 100;  // more end the run
};

struct Row {
  Json json;         // of a text: {"text": …}
  bool ends = true;  // false: a text that the file's next row goes on with
};

using Warn = std::function<void(const std::string&)>;

// A file is JSON Lines, where each line that is not blank is a row; one named *.txt or *.md is one text. A
// folder stands for all files in and below it (in the order of their names; not hidden ones), each of them a
// text, but for *.jsonl, *.ndjson and *.json. Texts over 1 MiB are several rows, cut at ends of lines.
// Files may be larger than memory: they are read through maps, and a row costs 28 bytes. Not thread-safe.
class Rows {
 public:
  // Finds the rows. `warn` (may be null) gets a line for each bad one. Throws Error(kNotFound, kInvalidInput)
  // naming the file that is missing or empty, and where there is no row at all.
  Rows(RowOptions options, Warn warn);

  int64_t size() const { return std::ssize(index_); }
  int64_t bad_rows() const { return bad_rows_; }
  // The row that comes at `place` in [0, size()) of an epoch.
  int64_t at(int64_t epoch, int64_t place);
  // Nothing where the row is no JSON or no UTF-8, which is told. Throws Error(kIo) where the file is no
  // longer the one that it was.
  std::optional<Row> read(int64_t row);
  // Counts a row as bad, once, and tells it as "FILE:LINE: WHAT; the row is skipped". Throws
  // Error(kInvalidInput) where there are too many, or no other is left.
  void refuse(int64_t row, const std::string& what);
  // What a run goes on from: which rows are bad (they count as before), and by what the files are known. Of
  // other files than those of `state` `warn` hears. set_state throws Error(kInvalidInput) where it is none.
  Json state() const;
  void set_state(const Json& state);
  bool is_bad(int64_t row) const { return is_bad_[static_cast<size_t>(row)]; }
  std::string where(int64_t row) const;  // "FILE:LINE"
  int64_t bytes(int64_t row) const { return index_[static_cast<size_t>(row)].bytes; }

 private:
  enum class Kind : uint32_t { kJson, kText, kTextGoesOn };
  struct Place {
    uint64_t begin;
    uint32_t bytes, file, line;
    Kind kind;
  };
  struct Source {
    std::filesystem::path path;
    size_t size = 0;
    bool is_text = false;
  };
  void add(const std::filesystem::path& path);
  void add_file(const std::filesystem::path& path, bool is_text);
  void find_lines(std::string_view text);
  void find_pieces(std::string_view text, size_t begin);
  void add_row(size_t begin, size_t end, size_t line, Kind kind);
  std::string_view open(size_t file);
  uint64_t all_bytes() const;

  RowOptions options_;
  Warn warn_;
  std::vector<Source> sources_;
  std::vector<Place> index_;
  std::vector<uint32_t> order_;
  int64_t ordered_ = -1;      // the epoch that order_ is of
  std::vector<bool> is_bad_;  // by row
  int64_t bad_rows_ = 0;
  MappedFile mapped_;  // the file that was read last
  size_t mapped_file_ = SIZE_MAX;
};

}  // namespace qiao::train
