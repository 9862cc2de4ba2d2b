// Wrapping of a paragraph, as Python's textwrap does it.
#include <algorithm>

#include "text/jinja_budget.h"
#include "text/jinja_text.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

using Text = std::vector<char32_t>;

bool is_wrap_space(char32_t c) { return (c >= 0x09 && c <= 0x0D) || c == ' '; }
bool is_word(char32_t c) { return c == '_' || is_alpha(c) || is_numeric(c); }
bool is_letter(char32_t c) { return is_word(c) && !is_decimal(c); }
bool is_word_or_mark(char32_t c) {
  return is_word(c) || c == '!' || c == '"' || c == '\'' || c == '&' || c == '.' || c == ',' || c == '?';
}

// A piece of the paragraph that no line break goes into.
struct Chunk {
  size_t begin = 0;
  size_t end = 0;
  size_t size() const { return end - begin; }
};

// Cuts a paragraph where a line may break: around spaces, after hyphens inside words, around dashes.
class Chunker {
 public:
  Chunker(const Text& text, bool hyphens) : text_(text), hyphens_(hyphens) {}

  std::vector<Chunk> run() const {
    std::vector<Chunk> chunks;
    for (size_t at = 0; at < text_.size();) {
      const size_t end = is_wrap_space(text_[at]) ? space_end(at) : word_end(at);
      chunks.push_back({at, end});
      at = end;
    }
    return chunks;
  }

 private:
  bool at(size_t i, bool (*is)(char32_t)) const { return i < text_.size() && is(text_[i]); }
  bool hyphen(size_t i) const { return i < text_.size() && text_[i] == '-'; }

  size_t space_end(size_t i) const {
    while (at(i, is_wrap_space)) ++i;
    return i;
  }

  // Where a dash of two or more hyphens that a word follows ends; 0 where there is none.
  size_t dash_end(size_t i) const {
    size_t end = i;
    while (hyphen(end)) ++end;
    return end - i >= 2 && at(end, is_word) ? end : 0;
  }

  size_t word_end(size_t begin) const {
    if (hyphens_ && begin > 0 && is_word_or_mark(text_[begin - 1])) {
      if (const size_t end = dash_end(begin); end != 0) return end;
    }
    for (size_t end = begin + 1;; ++end) {
      if (end >= text_.size() || is_wrap_space(text_[end])) return end;
      if (!hyphens_) continue;
      if (hyphen(end) && splits_after_hyphen(end)) return end + 1;
      if (is_word_or_mark(text_[end - 1]) && dash_end(end) != 0) return end;
    }
  }

  // Between letters: two before ("ab-"), or one and a hyphen and one ("a-b-"); and a letter after, or "x-y".
  bool splits_after_hyphen(size_t i) const {
    const auto letter = [&](size_t at) { return at < text_.size() && is_letter(text_[at]); };
    const bool two = i >= 2 && letter(i - 1) && letter(i - 2);
    const bool spaced = i >= 3 && letter(i - 1) && hyphen(i - 2) && letter(i - 3);
    if (!two && !spaced) return false;
    return letter(i + 1) && (letter(i + 2) || (hyphen(i + 2) && letter(i + 3)));
  }

  const Text& text_;
  const bool hyphens_;
};

bool is_blank(const Text& text, const Chunk& chunk) {
  return std::all_of(text.begin() + static_cast<ptrdiff_t>(chunk.begin),
                     text.begin() + static_cast<ptrdiff_t>(chunk.end), is_space);
}

// How much of a chunk goes into `space`, where it is longer: up to a hyphen, if words stand before it.
size_t broken_size(const Text& text, const Chunk& chunk, size_t space, bool break_on_hyphens) {
  if (!break_on_hyphens) return space;
  size_t hyphen = space;
  while (hyphen > 1 && text[chunk.begin + hyphen - 1] != '-') --hyphen;
  if (hyphen <= 1) return space;
  for (size_t i = 0; i + 1 < hyphen; ++i) {
    if (text[chunk.begin + i] != '-') return hyphen;
  }
  return space;
}

}  // namespace

std::vector<std::string> wrap_text(std::string_view paragraph, int64_t width, bool break_long_words,
                                   bool break_on_hyphens) {
  const Text text = to_code_points(paragraph);
  std::vector<Chunk> chunks = Chunker(text, break_on_hyphens).run();
  std::reverse(chunks.begin(), chunks.end());  // taken from the back
  const auto limit = static_cast<size_t>(width);
  std::vector<std::string> lines;
  while (!chunks.empty()) {
    step();
    if (!lines.empty() && is_blank(text, chunks.back())) chunks.pop_back();
    std::vector<Chunk> line;
    size_t length = 0;
    while (!chunks.empty() && length + chunks.back().size() <= limit) {
      length += chunks.back().size();
      line.push_back(chunks.back());
      chunks.pop_back();
    }
    if (!chunks.empty() && chunks.back().size() > limit) {
      Chunk& word = chunks.back();
      if (break_long_words) {
        const size_t end = word.begin + broken_size(text, word, limit - length, break_on_hyphens);
        line.push_back({word.begin, end});
        word.begin = end;
      } else if (line.empty()) {
        line.push_back(word);
        chunks.pop_back();
      }
    }
    if (!line.empty() && is_blank(text, line.back())) line.pop_back();
    if (line.empty()) continue;
    std::string out;
    for (const Chunk& chunk : line) {
      for (size_t i = chunk.begin; i < chunk.end; ++i) append_utf8(out, text[i]);
    }
    lines.push_back(std::move(out));
  }
  return lines;
}

}  // namespace qiao::jinja
