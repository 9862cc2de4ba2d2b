// Rows of JSON Lines files to be evaluated, and what is told of bad ones.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"

namespace qiao::eval {

struct Row {
  Json json;  // an object
  std::string file;
  int64_t line = 0;
  std::string where() const { return file + ":" + std::to_string(line); }
};

// Counts bad rows, and tells of the first of them.
class BadRows {
 public:
  explicit BadRows(std::function<void(const std::string&)> warn) : warn_(std::move(warn)) {}
  // One line: "FILE:LINE: WHAT; the row is skipped".
  void tell(const Row& row, const std::string& what);
  int64_t count() const { return count_; }

 private:
  std::function<void(const std::string&)> warn_;
  int64_t count_ = 0;
};

// Every line of the file that is not blank. Throws Error(kNotFound, kIo, kInvalidInput) where it cannot be
// read or is empty; a line that is no JSON object is a bad row.
std::vector<Row> read_rows(const std::filesystem::path& file, BadRows& bad);

// Fields of a row. Throw Error(kInvalidInput) that names the field and what was expected.
const Json* find_field(const Row& row,
                       std::initializer_list<const char*> names);  // null: none of them is there
const std::string& text_of(const Json& value, const std::string& field);
std::vector<std::string> texts_of(const Json& value, const std::string& field);  // at least one

}  // namespace qiao::eval
