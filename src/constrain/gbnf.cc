// A parser of GBNF, and of W3C's EBNF (the notation of the XML recommendation) where that does not clash with
// it.
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
constexpr size_t kMaxLooked = 1'000'000;

class GbnfParser {
 public:
  GbnfParser(std::string_view text, std::string_view where) : text_(text), where_(where) {}

  std::vector<Rule> parse() {
    for (top_space(); at_ < text_.size(); top_space()) {
      const size_t begin = at_;
      skip_number();
      const std::string name = identifier();
      if (name.empty()) fail("expected a rule: NAME ::= …");
      space(true);
      if (!take("::=")) {
        fail(
            "expected ::= after the rule's name (GBNF or W3C's EBNF; ':' as in Lark and '=' as in ISO 14977 "
            "are "
            "other notations)");
      }
      const uint32_t number = rule_number(name);
      if (defined_[number]) fail_at(begin, fmt::format("rule {} is defined twice", quote_text(name)));
      defined_[number] = true;
      space(true);
      rules_[number].body = alternatives(0, /*nested=*/false);
      take(";");
    }
    if (rules_.empty()) throw_error(ErrorKind::kInvalidInput, "{}: the grammar has no rules", where_);
    for (size_t r = 0; r < rules_.size(); ++r) {
      if (defined_[r]) continue;
      fail_at(used_[r], fmt::format("rule {} is used but not defined", quote_text(rules_[r].name)));
    }
    for (const Difference& difference : differences_) {
      CharSet left, right;
      if (!characters(difference.left, left, 0) || !characters(difference.right, right, 0)) {
        throw_error(ErrorKind::kUnsupported,
                    "{}: {}: A - B is not supported where A or B is more than one character long", where_,
                    place(difference.at));
      }
      difference_sets_.push_back(left.intersected(right.negated()));
    }
    for (Rule& rule : rules_) resolve(rule.body);
    start_first();
    return std::move(rules_);
  }

 private:
  [[noreturn]] void fail(std::string_view what) const { fail_at(at_, what); }
  std::string place(size_t at) const {
    size_t line = 1, column = 1;
    for (const char c : text_.substr(0, at)) {
      column = c == '\n' ? 1 : column + 1;
      line += c == '\n';
    }
    return fmt::format("line {}, column {}", line, column);
  }
  [[noreturn]] void fail_at(size_t at, std::string_view what) const {
    throw_error(ErrorKind::kInvalidInput, "{}: {}: {}", where_, place(at), what);
  }
  bool peek(std::string_view next) const { return text_.substr(at_).starts_with(next); }
  bool take(std::string_view next) {
    if (!peek(next)) return false;
    at_ += next.size();
    return true;
  }

  // A rule begins with no character: there a # always begins a comment.
  void top_space() {
    for (space(true); peek("#"); space(true)) {
      while (at_ < text_.size() && text_[at_] != '\n') ++at_;
    }
  }
  // The number that W3C's pages print at the begin of a rule's line: [12]. Elsewhere it is a class.
  void skip_number() {
    if (!peek("[")) return;
    const size_t before = text_.substr(0, at_).find_last_not_of(" \t");
    if (before != std::string_view::npos && text_[before] != '\n' && text_[before] != '\r') return;
    const size_t close = text_.find_first_not_of("0123456789", at_ + 1);
    if (close == std::string_view::npos || close == at_ + 1 || text_[close] != ']') return;
    at_ = std::min(text_.find_first_not_of(" \t", close + 1), text_.size());
  }
  bool at_code() const {  // #x and a digit: a character
    return peek("#x") && at_ + 2 < text_.size() && hex_value(text_[at_ + 2]) >= 0;
  }

  // Spaces and comments; line ends only where `lines`.
  void space(bool lines) {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r'))) {
        ++at_;
      } else if (c == '#' && !at_code()) {
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
      used_.push_back(at_ - name.size());
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
    skip_number();
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
      space(false);
      if (at_minus()) part = difference(std::move(part), depth);
      parts.push_back(std::move(part));
    }
    return Regex::concat(std::move(parts));
  }

  // "A - B" of W3C's EBNF; in GBNF a dash is part of names.
  bool at_minus() const {
    return peek("-") && at_ + 1 < text_.size() &&
           std::string_view(" \t\"'[(#").find(text_[at_ + 1]) != std::string_view::npos;
  }
  // Its sets may be of rules that come later: a placeholder until all are known.
  Regex difference(Regex left, int depth) {
    const size_t begin = at_++;
    space(true);
    Regex right = item(depth + 1);
    quantify(right);
    differences_.push_back({std::move(left), std::move(right), begin});
    Regex placeholder{.kind = Regex::Kind::kCall,
                      .min = kDifferences + static_cast<uint32_t>(differences_.size() - 1)};
    return placeholder;
  }
  // Whether `regex` is one character of a set.
  bool characters(const Regex& regex, CharSet& set, int depth) {
    if (depth > kMaxGrammarDepth || ++looked_ > kMaxLooked) return false;
    switch (regex.kind) {
      case Regex::Kind::kSet:
        set.add(regex.set);
        return true;
      case Regex::Kind::kAlternate:
        for (const Regex& child : regex.children) {
          if (!characters(child, set, depth + 1)) return false;
        }
        return true;
      case Regex::Kind::kCall:
        if (regex.min < kDifferences) return characters(rules_[regex.min].body, set, depth + 1);
        // Only those before it are known: a difference does not name itself.
        if (regex.min - kDifferences >= difference_sets_.size()) return false;
        set.add(difference_sets_[regex.min - kDifferences]);
        return true;
      default:
        return false;
    }
  }
  void resolve(Regex& regex) const {
    if (regex.kind == Regex::Kind::kCall && regex.min >= kDifferences) {
      regex = Regex::one_of(difference_sets_[regex.min - kDifferences]);
    }
    for (Regex& child : regex.children) resolve(child);
  }

  // The rule `root`, or else the first, becomes rule 0.
  void start_first() {
    const auto root = numbers_.find("root");
    if (root == numbers_.end() || root->second == 0) return;
    const uint32_t start = root->second;
    std::swap(rules_[0], rules_[start]);
    const auto renumber = [&](auto&& self, Regex& regex) -> void {
      if (regex.kind == Regex::Kind::kCall)
        regex.min = regex.min == 0 ? start : regex.min == start ? 0 : regex.min;
      for (Regex& child : regex.children) self(self, child);
    };
    for (Rule& rule : rules_) renumber(renumber, rule.body);
  }

  // After '[': as parse_regex_class, and #xN for a character.
  CharSet char_class() {
    size_t end = at_;
    while (end < text_.size() && text_[end] != ']') end += text_[end] == '\\' ? 2 : 1;
    const std::string_view inside = text_.substr(at_, std::min(end, text_.size()) - at_);
    if (inside.find("#x") == std::string_view::npos)
      return parse_regex_class(text_, at_, RegexDialect::kEcma, where_);
    std::string spelled;
    for (size_t i = 0; i < inside.size(); ++i) {
      size_t digits = i + 2;
      while (inside.substr(i).starts_with("#x") && digits < inside.size() && hex_value(inside[digits]) >= 0)
        ++digits;
      if (!inside.substr(i).starts_with("#x") || digits == i + 2) {
        spelled += inside[i];
        continue;
      }
      if (digits - i > 10) fail("a character over U+10FFFF");
      spelled += fmt::format("\\u{{{}}}", inside.substr(i + 2, digits - i - 2));
      i = digits - 1;
    }
    if (end >= text_.size()) fail("'[' without its ']'");
    spelled += ']';
    size_t at = 0;
    const CharSet set =
        parse_regex_class(spelled, at, RegexDialect::kEcma, fmt::format("{}: {}", where_, place(at_)));
    at_ = end + 1;
    return set;
  }

  Regex item(int depth) {
    if (peek("\"") || peek("'")) return quoted();
    if (take("[")) {
      return Regex::one_of(char_class());
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

  int hex_digit() const { return at_ < text_.size() ? hex_value(text_[at_]) : -1; }
  static int hex_value(char c) {
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
  std::vector<size_t> used_;  // where each rule was first named
  size_t looked_ = 0;         // parts that characters() went through
  struct Difference {
    Regex left, right;
    size_t at;
  };
  static constexpr uint32_t kDifferences = 1u << 30;  // calls from here on stand for differences_
  std::vector<Difference> differences_;
  std::vector<CharSet> difference_sets_;
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
