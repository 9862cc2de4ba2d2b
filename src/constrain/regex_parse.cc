// Recursive descent over the pattern's bytes.
#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/quote.h"
#include "constrain/regex.h"
#include "text/utf8.h"

namespace qiao::constrain {
namespace {

constexpr int kMaxGroupDepth = 200;

class RegexParser {
 public:
  RegexParser(std::string_view text, RegexDialect dialect, std::string_view where)
      : text_(text), dialect_(dialect), where_(where) {}

  Regex parse() {
    Regex result = alternation(0);
    if (at_ < text_.size()) fail("')' without its '('");
    return result;
  }

  CharSet char_class(size_t& at) {
    at_ = at;
    CharSet set = bracket();
    at = at_;
    return set;
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw_error(ErrorKind::kInvalidInput, "{}: byte {}: {}", where_, at_, what);
  }
  [[noreturn]] void unsupported(std::string_view what) const {
    throw_error(ErrorKind::kUnsupported, "{}: byte {}: {} is not supported: a finite automaton cannot do it",
                where_, at_, what);
  }
  bool more() const { return at_ < text_.size(); }
  bool peek(std::string_view next) const { return text_.substr(at_).starts_with(next); }
  bool take(std::string_view next) {
    if (!peek(next)) return false;
    at_ += next.size();
    return true;
  }
  uint32_t character() {
    const size_t length = tokenization::utf8_length(text_, at_);
    if (length == 0) fail("not valid UTF-8");
    size_t taken = 0;
    const char32_t c = tokenization::utf8_decode(text_, at_, &taken);
    at_ += taken;
    return c;
  }
  Regex set(const CharSet& chars) const { return Regex::one_of(ignore_case_ ? chars.without_case() : chars); }

  Regex alternation(int depth) {
    if (depth > kMaxGroupDepth) {
      throw_error(ErrorKind::kTooLarge, "{}: byte {}: groups nested deeper than {}", where_, at_,
                  kMaxGroupDepth);
    }
    std::vector<Regex> branches;
    do {
      branches.push_back(sequence(depth));
    } while (take("|"));
    return Regex::alternate(std::move(branches));
  }

  Regex sequence(int depth) {
    std::vector<Regex> parts;
    while (more() && !peek("|") && !peek(")")) {
      Regex part = atom(depth);
      for (int stacked = 0; quantify(part); ++stacked) {
        if (stacked > 0) fail("a quantifier after a quantifier");
      }
      parts.push_back(std::move(part));
    }
    return Regex::concat(std::move(parts));
  }

  // Wraps `part` where a quantifier follows. Lazy ones accept the same texts.
  bool quantify(Regex& part) {
    uint32_t min = 0, max = kUnbounded;
    if (take("*")) {
    } else if (take("+")) {
      min = 1;
    } else if (take("?")) {
      max = 1;
    } else if (!counted(min, max)) {
      return false;
    }
    if (peek("+")) unsupported("a possessive quantifier");
    take("?");
    if (part.kind == Regex::Kind::kStart || part.kind == Regex::Kind::kEnd)
      fail("an anchor cannot be repeated");
    part = Regex::repeat(std::move(part), min, max);
    return true;
  }

  std::optional<uint32_t> number() {
    if (!more() || text_[at_] < '0' || text_[at_] > '9') return std::nullopt;
    uint64_t value = 0;
    while (more() && text_[at_] >= '0' && text_[at_] <= '9') {
      value = std::min<uint64_t>(value * 10 + static_cast<uint64_t>(text_[at_++] - '0'), kUnbounded);
    }
    if (value > kMaxRepeat) {
      throw_error(ErrorKind::kTooLarge, "{}: byte {}: a repetition over {} times", where_, at_, kMaxRepeat);
    }
    return static_cast<uint32_t>(value);
  }

  // {n}, {n,}, {n,m} and {,m}; a brace that opens none of these is itself, as others read it.
  bool counted(uint32_t& min, uint32_t& max) {
    const size_t begin = at_;
    if (!take("{")) return false;
    const std::optional<uint32_t> low = number();
    std::optional<uint32_t> high = low;
    const bool comma = take(",");
    if (comma) high = number();
    if (!take("}") || (!low && (!comma || !high || dialect_ == RegexDialect::kEcma))) {
      at_ = begin;
      return false;
    }
    min = low.value_or(0);
    max = high.value_or(kUnbounded);
    if (min > max) fail("a repetition whose least is over its most");
    return true;
  }

  Regex atom(int depth) {
    const char c = text_[at_];
    if (c == '(') return group(depth);
    if (c == '[') {
      ++at_;
      return set(bracket());
    }
    if (c == '*' || c == '+' || c == '?') fail("a quantifier with nothing before it");
    if (c == '{') {
      uint32_t min = 0, max = 0;
      const size_t begin = at_;
      if (counted(min, max)) fail("a quantifier with nothing before it");
      at_ = begin;
    }
    if (c == '\\') return escape();
    if (take("^")) return {.kind = Regex::Kind::kStart};
    if (take("$")) return {.kind = Regex::Kind::kEnd};
    if (take(".")) {
      CharSet line_ends{{'\n', '\n'}};
      if (dialect_ == RegexDialect::kEcma) {
        line_ends.add('\r', '\r');
        line_ends.add(0x2028, 0x2029);
      }
      return Regex::one_of(dot_all_ ? CharSet::any() : line_ends.negated());
    }
    const uint32_t plain = character();
    return set(CharSet{{plain, plain}});
  }

  Regex group(int depth) {
    ++at_;
    const bool outer_case = ignore_case_, outer_dot = dot_all_;
    if (peek("?=") || peek("?!")) unsupported("look-ahead");
    if (peek("?<=") || peek("?<!")) unsupported("look-behind");
    if (peek("?>")) unsupported("an atomic group");
    if (take("?#")) {
      while (more() && text_[at_] != ')') ++at_;
      if (!take(")")) fail("a comment without its ')'");
      return {};
    }
    if (take("?P<") || take("?<")) {
      while (more() && text_[at_] != '>') ++at_;
      if (!take(">")) fail("a group's name without its '>'");
    } else if (take("?")) {
      const size_t begin = at_ - 2;
      bool on = true;
      for (; more() && std::string_view("isu-").find(text_[at_]) != std::string_view::npos; ++at_) {
        if (text_[at_] == '-') on = false;
        if (text_[at_] == 'i') ignore_case_ = on;
        if (text_[at_] == 's') dot_all_ = on;
      }
      if (take(")")) return {};  // (?i): from here to the end of the group around it
      if (!take(":"))
        unsupported(fmt::format("the group \"{}\"", printable(text_.substr(begin, at_ + 1 - begin))));
    }
    Regex inner = alternation(depth + 1);
    if (!take(")")) fail("'(' without its ')'");
    ignore_case_ = outer_case;
    dot_all_ = outer_dot;
    return inner;
  }

  // A class named by one letter after the backslash at `at_`, as \d.
  std::optional<CharSet> named_class() {
    const char c = text_[at_];
    CharSet chars;
    switch (c) {
      case 'd':
      case 'D':
        chars.add('0', '9');
        break;
      case 'w':
      case 'W':
        chars = CharSet{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
        break;
      case 's':
      case 'S':
        chars = CharSet{{'\t', '\r'}, {' ', ' '}};
        if (dialect_ == RegexDialect::kEcma) {
          chars.add(CharSet{{0xA0, 0xA0},
                            {0x1680, 0x1680},
                            {0x2000, 0x200A},
                            {0x2028, 0x2029},
                            {0x202F, 0x202F},
                            {0x205F, 0x205F},
                            {0x3000, 0x3000},
                            {0xFEFF, 0xFEFF}});
        }
        break;
      case 'p':
      case 'P': {
        ++at_;
        std::string name;
        if (take("{")) {
          const size_t close = text_.find('}', at_);
          if (close == std::string_view::npos) fail("\\p{ without its '}'");
          name = text_.substr(at_, close - at_);
          at_ = close + 1;
        } else if (more()) {
          name = text_.substr(at_++, 1);
        }
        const bool negative = name.starts_with('^');
        chars = unicode_class(negative ? name.substr(1) : name, where_);
        return (c == 'P') != negative ? chars.negated() : chars;
      }
      default:
        return std::nullopt;
    }
    ++at_;
    return c == 'D' || c == 'W' || c == 'S' ? chars.negated() : chars;
  }

  uint32_t hex(size_t digits) {
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const char c = more() ? text_[at_] : ' ';
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail(fmt::format("expected {} hexadecimal digits", digits));
      value = value * 16 + static_cast<uint32_t>(digit);
    }
    return value;
  }

  // The character that an escape after the backslash at `at_` stands for.
  uint32_t escaped_character() {
    if (!more()) fail("a backslash at the end");
    const char c = text_[at_];
    constexpr std::pair<char, char> kControls[] = {{'n', '\n'}, {'r', '\r'}, {'t', '\t'},
                                                   {'f', '\f'}, {'v', '\v'}, {'a', '\a'}};
    for (const auto& [letter, control] : kControls) {
      if (c == letter) {
        ++at_;
        return static_cast<uint32_t>(control);
      }
    }
    if (take("x")) return take("{") ? braced_hex() : hex(2);
    if (take("u")) {
      if (take("{")) return braced_hex();
      uint32_t value = hex(4);
      if (value >= 0xD800 && value < 0xDC00 && take("\\u"))
        value = 0x10000 + ((value - 0xD800) << 10) + (hex(4) - 0xDC00);
      if (value > kLastChar) fail("a pair of surrogates that is none");
      return value;
    }
    if (take("U")) return checked(hex(8));
    if (c == 'c' && at_ + 1 < text_.size() && dialect_ == RegexDialect::kEcma) {
      at_ += 2;
      return static_cast<uint32_t>(text_[at_ - 1]) & 31;
    }
    if (c == '0') {
      ++at_;
      return 0;
    }
    if ((c >= '1' && c <= '9') || c == 'k') unsupported("a backreference");
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      fail(fmt::format("\\{} is not an escape that Qiao knows", c));
    }
    return character();
  }
  uint32_t braced_hex() {
    uint32_t value = 0;
    const size_t close = text_.find('}', at_);
    if (close == std::string_view::npos || close == at_ || close - at_ > 8)
      fail("expected hexadecimal digits and '}'");
    value = hex(close - at_);
    ++at_;
    return checked(value);
  }
  uint32_t checked(uint32_t value) const {
    if (value > kLastChar) fail("a character over U+10FFFF");
    return value;
  }

  Regex escape() {
    ++at_;
    if (!more()) fail("a backslash at the end");
    if (peek("b") || peek("B")) unsupported("a word boundary");
    if (take("A")) return {.kind = Regex::Kind::kStart};
    if (take("z") || take("Z")) return {.kind = Regex::Kind::kEnd};
    if (auto chars = named_class()) return set(*chars);
    const uint32_t c = escaped_character();
    return set(CharSet{{c, c}});
  }

  // After "[:", inside a bracket; ASCII, as RE2 has it.
  CharSet posix_class() {
    const size_t end = text_.find(":]", at_);
    if (end == std::string_view::npos) fail("'[:' without its ':]'");
    std::string_view name = text_.substr(at_, end - at_);
    const bool negative = name.starts_with('^');
    if (negative) name.remove_prefix(1);
    struct Posix {
      std::string_view name;
      CharSet set;
    };
    const Posix kinds[] = {{"alnum", {{'0', '9'}, {'A', 'Z'}, {'a', 'z'}}},
                           {"alpha", {{'A', 'Z'}, {'a', 'z'}}},
                           {"ascii", {{0, 0x7F}}},
                           {"blank", {{'\t', '\t'}, {' ', ' '}}},
                           {"cntrl", {{0, 0x1F}, {0x7F, 0x7F}}},
                           {"digit", {{'0', '9'}}},
                           {"graph", {{'!', '~'}}},
                           {"lower", {{'a', 'z'}}},
                           {"print", {{' ', '~'}}},
                           {"punct", {{'!', '/'}, {':', '@'}, {'[', '`'}, {'{', '~'}}},
                           {"space", {{'\t', '\r'}, {' ', ' '}}},
                           {"upper", {{'A', 'Z'}}},
                           {"word", {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}},
                           {"xdigit", {{'0', '9'}, {'A', 'F'}, {'a', 'f'}}}};
    for (const Posix& kind : kinds) {
      if (kind.name != name) continue;
      at_ = end + 2;
      return negative ? kind.set.negated() : kind.set;
    }
    fail(fmt::format("[:{}:] is not a class that Qiao knows", printable(name, 40)));
  }

  // After '['.
  CharSet bracket() {
    const bool negative = take("^");
    std::vector<CharRange> ranges;
    bool first = true;
    const auto one = [&](bool& is_class) -> uint32_t {
      is_class = false;
      if (!take("\\")) return character();
      if (!more()) fail("a backslash at the end");
      if (auto named = named_class()) {
        ranges.insert(ranges.end(), named->ranges().begin(), named->ranges().end());
        is_class = true;
        return 0;
      }
      if (take("b")) return '\b';
      return escaped_character();
    };
    while (true) {
      if (!more()) fail("'[' without its ']'");
      // "[]a]" holds a bracket in most dialects; in ECMA's "[]" is the empty class.
      if (peek("]") && !(first && dialect_ == RegexDialect::kPlain)) break;
      first = false;
      if (dialect_ == RegexDialect::kPlain && take("[:")) {
        const CharSet named = posix_class();
        ranges.insert(ranges.end(), named.ranges().begin(), named.ranges().end());
        continue;
      }
      bool is_class = false;
      const uint32_t lo = one(is_class);
      if (is_class) continue;
      uint32_t hi = lo;
      if (peek("-") && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        const size_t dash = at_++;
        hi = one(is_class);
        if (is_class) {  // [a-\d]: the dash is itself
          ranges.push_back({'-', '-'});
          hi = lo;
        } else if (hi < lo) {
          at_ = dash;
          fail("a range whose begin is over its end");
        }
      }
      ranges.push_back({lo, hi});
    }
    ++at_;
    CharSet result;
    result.add(ranges);
    if (ignore_case_) result = result.without_case();
    return negative ? result.negated() : result;
  }

  std::string_view text_;
  RegexDialect dialect_;
  std::string_view where_;
  size_t at_ = 0;
  bool ignore_case_ = false;
  bool dot_all_ = false;
};

}  // namespace

Regex parse_regex(std::string_view pattern, RegexDialect dialect, std::string_view where) {
  if (pattern.size() > kMaxPatternBytes) {
    throw_error(ErrorKind::kTooLarge, "{}: a pattern of {} bytes is over the limit of {}", where,
                pattern.size(), kMaxPatternBytes);
  }
  return RegexParser(pattern, dialect, where).parse();
}

CharSet parse_regex_class(std::string_view pattern, size_t& at, RegexDialect dialect,
                          std::string_view where) {
  return RegexParser(pattern, dialect, where).char_class(at);
}

}  // namespace qiao::constrain
