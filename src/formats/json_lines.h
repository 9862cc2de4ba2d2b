// JSON Lines: one row of JSON a line. Lines without anything are none, and a byte-order mark before the first
// is passed over. What reads rows reads them by this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/json.h"

namespace qiao {

class JsonLines {
 public:
  explicit JsonLines(std::string_view text);

  struct Line {
    size_t begin = 0, end = 0;  // of the text, without the line's end
    int64_t number = 0;         // from 1
  };
  // The next that holds something; nothing behind the last.
  std::optional<Line> next();

 private:
  std::string_view text_;
  size_t at_;
  int64_t number_ = 0;
};

bool is_blank_line(std::string_view line);
// Bytes of a byte-order mark that `text` begins with.
size_t byte_order_mark(std::string_view text);
// Throws Error(kInvalidInput) saying what is wrong with the line, which may have 64 MiB and be nested 128
// deep.
Json parse_json_line(std::string_view line);

}  // namespace qiao
