#include "text/jinja_lexer.h"

#include <algorithm>

#include "base/error.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

// Three kinds of newline become one, and a single one at the end goes.
std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
      continue;
    }
    out += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool is_digit_of(char c, int base) {
  if (base == 16 && ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))) return true;
  return c >= '0' && c < '0' + std::min(base, 10);
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : normalized_(normalize_newlines(source)), source_(normalized_) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) root();
    add(TokenKind::kEnd, {});
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(std::string_view message) const {
    throw_error(ErrorKind::kInvalidInput, "line {}: {}", line_, message);
  }

  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }

  // Moves past source_[at_, end), counting lines.
  void advance(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                         source_.begin() + static_cast<ptrdiff_t>(end), '\n'));
    if (end > at_) line_starting_ = source_[end - 1] == '\n';
    at_ = end;
  }

  bool at(size_t position, std::string_view text) const {
    return source_.substr(position, text.size()) == text;
  }

  size_t skip_space(size_t position) const {
    while (position < source_.size()) {
      size_t next = position;
      if (!is_space(utf8_next(source_, next))) break;
      position = next;
    }
    return position;
  }

  // Data up to the next tag, then the tag.
  void root() {
    size_t tag = at_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string_view::npos || tag + 1 >= source_.size()) {
        add(TokenKind::kData, std::string(source_.substr(at_)));
        advance(source_.size());
        return;
      }
      const char second = source_[tag + 1];
      if (second == '{' || second == '%' || second == '#') break;
      ++tag;
    }
    const char second = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const bool has_sign = sign == '-' || sign == '+';
    data(tag, sign, second != '{');
    const size_t inside = tag + (has_sign ? 3 : 2);
    if (second == '#') {
      advance(inside);
      comment();
    } else if (second == '{') {
      add(TokenKind::kVariableBegin, "{{");
      advance(inside);
      expression(false);
    } else if (const size_t raw_start = raw_begin(inside); raw_start != 0) {
      advance(raw_start);
      raw();
    } else {
      add(TokenKind::kBlockBegin, "{%");
      advance(inside);
      expression(true);
    }
  }

  // The text before a tag at `end`, stripped as the tag's sign says.
  void data(size_t end, char sign, bool strips_line) {
    std::string_view text = source_.substr(at_, end - at_);
    if (sign == '-') {
      text = strip(text, false, true);
    } else if (sign != '+' && strips_line) {
      const size_t newline = text.rfind('\n');
      const size_t line_start = newline == std::string_view::npos ? 0 : newline + 1;
      if (line_start > 0 || line_starting_) {
        if (strip(text.substr(line_start), true, false).empty()) text = text.substr(0, line_start);
      }
    }
    if (!text.empty()) add(TokenKind::kData, std::string(text));
    advance(end);
  }

  // Where the text of a raw block starts, if one opens here ("{%" and the sign are before `inside`); else 0.
  size_t raw_begin(size_t inside) const {
    size_t position = skip_space(inside);
    if (!at(position, "raw")) return 0;
    position = skip_space(position + 3);
    if (at(position, "-%}")) return skip_space(position + 3);
    return at(position, "%}") ? position + 2 : 0;
  }

  void raw() {
    for (size_t tag = source_.find("{%", at_); tag != std::string_view::npos;
         tag = source_.find("{%", tag + 1)) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
      size_t position = skip_space(tag + (sign == '-' || sign == '+' ? 3 : 2));
      if (!at(position, "endraw")) continue;
      position = block_end(skip_space(position + 6));
      if (position == 0) continue;
      data(tag, sign, true);
      advance(position);
      return;
    }
    fail("Missing end of raw directive");
  }

  void comment() {
    for (size_t end = source_.find("#}", at_); end != std::string_view::npos;
         end = source_.find("#}", end + 1)) {
      size_t after = end + 2;
      if (end > at_ && source_[end - 1] == '-') {
        after = skip_space(after);
      } else if (!(end > at_ && source_[end - 1] == '+') && at(after, "\n")) {
        ++after;
      }
      advance(after);
      return;
    }
    fail("Missing end of comment tag");
  }

  // Past the end of a block tag at `position`, with the space that it trims; 0 where there is none.
  size_t block_end(size_t position) const {
    if (at(position, "+%}")) return position + 3;
    if (at(position, "-%}")) return skip_space(position + 3);
    if (!at(position, "%}")) return 0;
    return at(position + 2, "\n") ? position + 3 : position + 2;
  }

  size_t variable_end(size_t position) const {
    if (at(position, "-}}")) return skip_space(position + 3);
    return at(position, "}}") ? position + 2 : 0;
  }

  void expression(bool block) {
    std::string open;  // brackets not closed yet
    while (at_ < source_.size()) {
      if (open.empty()) {
        if (const size_t end = block ? block_end(at_) : variable_end(at_); end != 0) {
          add(block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, block ? "%}" : "}}");
          advance(end);
          return;
        }
      }
      if (const size_t end = skip_space(at_); end != at_) {
        advance(end);
        continue;
      }
      const char c = source_[at_];
      if (c >= '0' && c <= '9') {
        number();
      } else if (c == '\'' || c == '"') {
        string(c);
      } else if (!name()) {
        operation(open);
      }
    }
  }

  // digits, possibly with single underscores between them; where they end.
  size_t digits(size_t position, int base) const {
    while (position < source_.size()) {
      if (is_digit_of(source_[position], base)) {
        ++position;
      } else if (source_[position] == '_' && position + 1 < source_.size() &&
                 is_digit_of(source_[position + 1], base)) {
        position += 2;
      } else {
        break;
      }
    }
    return position;
  }

  bool digit_at(size_t position) const {
    return position < source_.size() && is_digit_of(source_[position], 10);
  }

  void number() {
    const size_t whole = digits(at_, 10);
    size_t end = whole;
    const bool after_dot = at_ > 0 && source_[at_ - 1] == '.';
    if (!after_dot) {
      if (at(end, ".") && digit_at(end + 1)) end = digits(end + 1, 10);
      if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
        const bool has_sign =
            end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-');
        const size_t exponent = end + (has_sign ? 2 : 1);
        if (digit_at(exponent)) end = digits(exponent, 10);
      }
    }
    const bool real = end != whole;
    if (!real && source_[at_] == '0') {
      end = at_ + 1;
      const char kind = end < source_.size() ? static_cast<char>(source_[end] | 0x20) : '\0';
      const int base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
      size_t based = end + 1;
      if (base != 0 && at(based, "_")) ++based;
      if (base != 0 && based < source_.size() && is_digit_of(source_[based], base)) {
        end = digits(based, base);
      } else {
        while (at(end, "0") || at(end, "_0")) end += source_[end] == '_' ? 2 : 1;
      }
    }
    std::string text(source_.substr(at_, end - at_));
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    add(real ? TokenKind::kFloat : TokenKind::kInteger, std::move(text));
    advance(end);
  }

  bool name() {
    size_t end = at_;
    while (end < source_.size()) {
      size_t next = end;
      const char32_t c = utf8_next(source_, next);
      if (!(end == at_ ? is_identifier_start(c) : is_identifier_part(c))) break;
      end = next;
    }
    if (end == at_) return false;
    add(TokenKind::kName, std::string(source_.substr(at_, end - at_)));
    advance(end);
    return true;
  }

  void string(char quote) {
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size())
      fail(fmt::format("unexpected char {} at {}", quote == '\'' ? "\"'\"" : "'\"'", at_));
    add(TokenKind::kString, unescape(source_.substr(at_ + 1, end - at_ - 1)));
    advance(end + 1);
  }

  std::string unescape(std::string_view text) const {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        out += text[i];
        continue;
      }
      const char c = text[++i];
      static constexpr std::string_view kPlain = "\\'\"abfnrtv";
      static constexpr std::string_view kMeaning = "\\'\"\a\b\f\n\r\t\v";
      if (const size_t plain = kPlain.find(c); plain != std::string_view::npos) {
        out += kMeaning[plain];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t count = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        append_escaped(out, text.substr(i + 1, count), count, 16);
        i += count;
      } else if (c >= '0' && c <= '7') {
        size_t count = 1;
        while (count < 3 && i + count < text.size() && is_digit_of(text[i + count], 8)) ++count;
        append_escaped(out, text.substr(i, count), count, 8);
        i += count - 1;
      } else if (c == 'N') {
        throw_error(ErrorKind::kUnsupported, "line {}: a character by its name (\\N)", line_);
      } else if (c != '\n') {
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  void append_escaped(std::string& out, std::string_view digits, size_t count, int base) const {
    char32_t c = 0;
    for (const char digit : digits) {
      if (!is_digit_of(digit, base)) fail("truncated escape in a string");
      const char lower = static_cast<char>(digit | 0x20);
      c = c * static_cast<char32_t>(base) +
          static_cast<char32_t>(digit <= '9' ? digit - '0' : lower - 'a' + 10);
    }
    if (digits.size() != count) fail("truncated escape in a string");
    if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) fail("illegal Unicode character in a string");
    append_utf8(out, c);
  }

  void operation(std::string& open) {
    static constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                      "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                      ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    for (const std::string_view op : kOperators) {
      if (!at(at_, op)) continue;
      balance(op[0], open);
      add(TokenKind::kOperator, std::string(op));
      advance(at_ + op.size());
      return;
    }
    size_t end = at_;
    utf8_next(source_, end);
    fail(fmt::format("unexpected char '{}' at {}", source_.substr(at_, end - at_), at_));
  }

  void balance(char op, std::string& open) const {
    if (op == '{' || op == '(' || op == '[') {
      open += op == '{' ? '}' : op == '(' ? ')' : ']';
    } else if (op == '}' || op == ')' || op == ']') {
      if (open.empty()) fail(fmt::format("unexpected '{}'", op));
      if (open.back() != op) fail(fmt::format("unexpected '{}', expected '{}'", op, open.back()));
      open.pop_back();
    }
  }

  const std::string normalized_;
  const std::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kName:
    case TokenKind::kOperator:
      return token.text;
    case TokenKind::kData:
      return "template data / text";
    case TokenKind::kVariableBegin:
      return "begin of print statement";
    case TokenKind::kVariableEnd:
      return "end of print statement";
    case TokenKind::kBlockBegin:
      return "begin of statement block";
    case TokenKind::kBlockEnd:
      return "end of statement block";
    case TokenKind::kString:
      return "string";
    case TokenKind::kInteger:
      return "integer";
    case TokenKind::kFloat:
      return "float";
    case TokenKind::kEnd:
      return "end of template";
  }
  return {};
}

}  // namespace qiao::jinja
