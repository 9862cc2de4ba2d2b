// A parser of GBNF. Differences of W3C's EBNF are taken along where they do not clash with it.
#include <unordered_map>

#include "base/error.h"
#include "base/quote.h"
#include "constrain/rules.h"
#include "text/utf8.h"

namespace qiao::constrain {
namespace {

constexpr size_t kMaxGrammarBytes = size_t{1} << 20;
constexpr size_t kMaxRules = 20'000;
constexpr int kMaxGrammarDepth = 200;

class GbnfParser {
 public:
  GbnfParser(std::string_view text, std::string_view where) : text_(text), where_(where) {}

  std::vector<Rule> parse() {
    rule_number("root");
    for (space(true); at_ < text_.size(); space(true)) {
      const size_t begin = at_;
      const std::string name = identifier();
      if (name.empty()) fail("expected a rule: NAME ::= …");
      space(true);
      if (!take("::=")) fail("expected ::= after the rule's name");
      const uint32_t number = rule_number(name);
      if (defined_[number]) fail_at(begin, fmt::format("rule {} is defined twice", quote_text(name)));
      defined_[number] = true;
      space(true);
      rules_[number].body = alternatives(0, /*nested=*/false);
      take(";");
    }
    for (size_t r = 0; r < rules_.size(); ++r) {
      if (defined_[r]) continue;
      if (r == 0) throw_error(ErrorKind::kInvalidInput, "{}: the grammar has no rule \"root\"", where_);
      throw_error(ErrorKind::kInvalidInput, "{}: rule {} is used but not defined", where_,
                  quote_text(rules_[r].name));
    }
    return std::move(rules_);
  }

 private:
  [[noreturn]] void fail(std::string_view what) const { fail_at(at_, what); }
  [[noreturn]] void fail_at(size_t at, std::string_view what) const {
    size_t line = 1, column = 1;
    for (const char c : text_.substr(0, at)) {
      column = c == '\n' ? 1 : column + 1;
      line += c == '\n';
    }
    throw_error(ErrorKind::kInvalidInput, "{}: line {}, column {}: {}", where_, line, column, what);
  }
  bool peek(std::string_view next) const { return text_.substr(at_).starts_with(next); }
  bool take(std::string_view next) {
    if (!peek(next)) return false;
    at_ += next.size();
    return true;
  }

  // Spaces and comments; line ends only where `lines`.
  void space(bool lines) {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r'))) {
        ++at_;
      } else if (c == '#' && !peek("#x")) {
        while (at_ < text_.size() && text_[at_] != '\n') ++at_;
      } else if (peek("/*")) {
        const size_t end = text_.find("*/", at_ + 2);
        if (end == std::string_view::npos) fail("/* without its */");
        at_ = end + 2;
      } else {
        return;
      }
    }
  }

  std::string identifier() {
    const size_t begin = at_;
    while (at_ < text_.size()) {
      const char c = text_[at_];
      const bool word =
          (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
      if (!word) break;
      ++at_;
    }
    return std::string(text_.substr(begin, at_ - begin));
  }

  uint32_t rule_number(const std::string& name) {
    const auto [it, added] = numbers_.try_emplace(name, static_cast<uint32_t>(rules_.size()));
    if (added) {
      if (rules_.size() >= kMaxRules) {
        throw_error(ErrorKind::kTooLarge, "{}: over {} rules", where_, kMaxRules);
      }
      rules_.push_back({name, {}});
      defined_.push_back(false);
    }
    return it->second;
  }

  Regex alternatives(int depth, bool nested) {
    if (depth > kMaxGrammarDepth) {
      throw_error(ErrorKind::kTooLarge, "{}: groups nested deeper than {}", where_, kMaxGrammarDepth);
    }
    std::vector<Regex> branches;
    branches.push_back(sequence(depth, nested));
    for (space(true); take("|"); space(true)) {
      space(true);
      branches.push_back(sequence(depth, nested));
    }
    return Regex::alternate(std::move(branches));
  }

  // Whether a new rule begins here: NAME ::=
  bool at_rule() {
    const size_t begin = at_;
    const bool named = !identifier().empty();
    space(true);
    const bool result = named && peek("::=");
    at_ = begin;
    return result;
  }

  Regex sequence(int depth, bool nested) {
    std::vector<Regex> parts;
    while (true) {
      const size_t before = at_;
      space(true);
      if (at_ >= text_.size() || peek("|") || peek(")") || peek("]") || peek(";")) break;
      if (!nested && at_rule()) {
        at_ = before;
        break;
      }
      Regex part = item(depth);
      quantify(part);
      parts.push_back(std::move(part));
    }
    return Regex::concat(std::move(parts));
  }

  Regex item(int depth) {
    if (peek("\"") || peek("'")) return quoted();
    if (take("[")) {
      const CharSet set = parse_regex_class(text_, at_, RegexDialect::kEcma, where_);
      return Regex::one_of(set);
    }
    if (take("(")) {
      Regex inner = alternatives(depth + 1, /*nested=*/true);
      space(true);
      if (!take(")")) fail("'(' without its ')'");
      return inner;
    }
    if (take(".")) return Regex::one_of(CharSet::any());
    if (take("#x")) {
      uint32_t value = 0;
      const size_t begin = at_;
      for (int digit; (digit = hex_digit()) >= 0; ++at_) {
        value = value * 16 + static_cast<uint32_t>(digit);
        if (value > kLastChar) fail("a character over U+10FFFF");
      }
      if (at_ == begin) fail("#x without hexadecimal digits");
      return Regex::one_of(CharSet{{value, value}});
    }
    const std::string name = identifier();
    if (name.empty()) fail("expected a string, a class, a group or a rule's name");
    return Regex::call(rule_number(name));
  }

  int hex_digit() const {
    const char c = at_ < text_.size() ? text_[at_] : ' ';
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  }

  Regex quoted() {
    const char quote = text_[at_++];
    std::vector<Regex> parts;
    while (true) {
      if (at_ >= text_.size() || text_[at_] == '\n') fail("a string without its end");
      if (text_[at_] == quote) break;
      uint32_t c = 0;
      if (text_[at_] == '\\') {
        c = escaped();
      } else {
        if (tokenization::utf8_length(text_, at_) == 0) fail("not valid UTF-8");
        size_t length = 0;
        c = tokenization::utf8_decode(text_, at_, &length);
        at_ += length;
      }
      parts.push_back(Regex::one_of(CharSet{{c, c}}));
    }
    ++at_;
    return Regex::concat(std::move(parts));
  }

  uint32_t escaped() {
    constexpr std::pair<char, char> kEscapes[] = {{'n', '\n'}, {'r', '\r'},  {'t', '\t'},
                                                  {'"', '"'},  {'\'', '\''}, {'\\', '\\'},
                                                  {'[', '['},  {']', ']'},   {'-', '-'}};
    ++at_;
    for (const auto& [letter, c] : kEscapes) {
      if (at_ < text_.size() && text_[at_] == letter) {
        ++at_;
        return static_cast<uint32_t>(c);
      }
    }
    const size_t digits = take("x") ? 2 : take("u") ? 4 : take("U") ? 8 : 0;
    if (digits == 0) fail("an escape that is none of \\n \\r \\t \\\" \\\\ \\xNN \\uNNNN \\UNNNNNNNN");
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const int digit = hex_digit();
      if (digit < 0) fail(fmt::format("expected {} hexadecimal digits", digits));
      value = value * 16 + static_cast<uint32_t>(digit);
    }
    if (value > kLastChar) fail("a character over U+10FFFF");
    return value;
  }

  void quantify(Regex& part) {
    while (true) {
      space(false);
      if (take("*")) {
        part = Regex::repeat(std::move(part), 0, kUnbounded);
      } else if (take("+")) {
        part = Regex::repeat(std::move(part), 1, kUnbounded);
      } else if (take("?")) {
        part = Regex::repeat(std::move(part), 0, 1);
      } else if (take("{")) {
        const uint32_t min = count().value_or(0);
        uint32_t max = min;
        if (take(",")) max = count().value_or(kUnbounded);
        if (!take("}") || min > max) fail("expected {N}, {N,} or {N,M}");
        part = Regex::repeat(std::move(part), min, max);
      } else {
        return;
      }
      if (++quantifiers_ > kMaxGrammarBytes) fail("too many quantifiers");
    }
  }

  std::optional<uint32_t> count() {
    space(false);
    if (at_ >= text_.size() || text_[at_] < '0' || text_[at_] > '9') return std::nullopt;
    uint32_t value = 0;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      value = value * 10 + static_cast<uint32_t>(text_[at_++] - '0');
      if (value > kMaxRepeat) fail(fmt::format("a repetition over {} times", kMaxRepeat));
    }
    space(false);
    return value;
  }

  std::string_view text_;
  std::string_view where_;
  size_t at_ = 0;
  size_t quantifiers_ = 0;
  std::vector<Rule> rules_;
  std::vector<bool> defined_;
  std::unordered_map<std::string, uint32_t> numbers_;
};

}  // namespace

std::vector<Rule> parse_gbnf(std::string_view text, std::string_view where) {
  if (text.size() > kMaxGrammarBytes) {
    throw_error(ErrorKind::kTooLarge, "{}: a grammar of {} bytes is over the limit of {}", where, text.size(),
                kMaxGrammarBytes);
  }
  return GbnfParser(text, where).parse();
}

}  // namespace qiao::constrain
