// Matching of generated text that may not have arrived in full.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace qiao::chat {

enum class Match { kYes, kNo, kMore };  // kMore: the text ends where it still may become one

// Walks over a text from its beginning; after the first step that does not match, the others do nothing.
class TextMatch {
 public:
  explicit TextMatch(std::string_view text) : text_(text) {}
  Match result() const { return result_; }
  bool ok() const { return result_ == Match::kYes; }
  size_t at() const { return at_; }

  void space();                          // any whitespace, also none
  void literal(std::string_view text);   // these bytes
  void marker(std::string_view marker);  // these bytes, with any whitespace or none where it has some
  // The next byte, which stays; 0 where ok() is not.
  char peek();
  std::string word(size_t most);  // letters, digits, '_', '-' and '.': one or more
  std::string json_string();      // unescaped
  std::string_view json_value();  // as it stands
  // Up to the next `end`, which is taken too.
  std::string_view until(std::string_view end);
  void fail() { result_ = Match::kNo; }

 private:
  void more() { result_ = Match::kMore; }
  std::string_view text_;
  size_t at_ = 0;
  Match result_ = Match::kYes;
};

// How many bytes at the end of `text` may be the beginning of `marker`.
size_t marker_tail(std::string_view text, std::string_view marker);

}  // namespace qiao::chat
