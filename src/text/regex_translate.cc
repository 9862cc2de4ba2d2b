#include <cctype>
#include <optional>
#include <vector>

#include "base/error.h"
#include "text/regex.h"
#include "text/utf8.h"

namespace qiao::tokenization {
namespace {

constexpr int kMaxDepth = 200;

// Oniguruma's \w, as items of a class. (Its table of Latin-1 adds the superscript and fraction digits.)
constexpr std::string_view kWordItems =
    "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";

struct LongName {
  std::string_view onig;  // lower case, without spaces, '-' and '_'
  std::string_view pcre;  // items of a class
};
constexpr LongName kLongNames[] = {
    {"any", "\\x{0}-\\x{10FFFF}"},
    {"letter", "\\p{L}"},
    {"mark", "\\p{M}"},
    {"number", "\\p{N}"},
    {"punctuation", "\\p{P}"},
    {"symbol", "\\p{S}"},
    {"separator", "\\p{Z}"},
    {"other", "\\p{C}"},
    {"uppercaseletter", "\\p{Lu}"},
    {"lowercaseletter", "\\p{Ll}"},
    {"titlecaseletter", "\\p{Lt}"},
    {"modifierletter", "\\p{Lm}"},
    {"otherletter", "\\p{Lo}"},
    {"nonspacingmark", "\\p{Mn}"},
    {"spacingmark", "\\p{Mc}"},
    {"enclosingmark", "\\p{Me}"},
    {"decimalnumber", "\\p{Nd}"},
    {"letternumber", "\\p{Nl}"},
    {"othernumber", "\\p{No}"},
    {"spaceseparator", "\\p{Zs}"},
    {"control", "\\p{Cc}"},
    {"format", "\\p{Cf}"},
    {"alpha", "\\p{Alphabetic}"},
    {"alphabetic", "\\p{Alphabetic}"},
    {"alnum", "\\p{Alphabetic}\\p{Nd}"},
    {"digit", "\\p{Nd}"},
    {"lower", "\\p{Lowercase}"},
    {"lowercase", "\\p{Lowercase}"},
    {"upper", "\\p{Uppercase}"},
    {"uppercase", "\\p{Uppercase}"},
    {"space", "\\p{White_Space}"},
    {"whitespace", "\\p{White_Space}"},
    {"punct", "\\p{P}\\p{S}"},
    {"cntrl", "\\p{Cc}"},
    {"blank", "\\p{Zs}\\t"},
    {"xdigit", "0-9A-Fa-f"},
    {"word", kWordItems},
    {"ascii", "\\x{0}-\\x{7F}"},
    {"emoji", "\\p{Emoji}"},
    {"extendedpictographic", "\\p{Extended_Pictographic}"},
};

// A set of characters: plain items of a PCRE2 class, and parts that need an alternation (a negated class
// inside a class, an intersection).
struct CharSet {
  std::string items;
  std::vector<std::string> parts;
  bool negated = false;

  std::string plain() const { return items.empty() ? std::string("(?!)") : fmt::format("[{}]", items); }
  // An atom that matches one character.
  std::string atom() const {
    if (parts.empty()) {
      if (items.empty()) return negated ? "[\\x{0}-\\x{10FFFF}]" : "(?!)";
      return fmt::format("[{}{}]", negated ? "^" : "", items);
    }
    std::string any = items.empty() ? std::string() : plain();
    for (const std::string& part : parts) any += (any.empty() ? "" : "|") + part;
    return negated ? fmt::format("(?:(?!{})[\\x{{0}}-\\x{{10FFFF}}])", any) : fmt::format("(?:{})", any);
  }
};

class Translator {
 public:
  Translator(std::string_view pattern, std::string_view where) : in_(pattern), where_(where) {}

  std::string run() {
    while (at_ < in_.size()) step();
    return std::move(out_);
  }

 private:
  [[noreturn]] void unsupported(std::string_view what) const {
    throw_error(ErrorKind::kUnsupported, "{}: regular expression: {} at byte {} is not supported", where_,
                what, at_);
  }
  [[noreturn]] void malformed(std::string_view what) const {
    throw_error(ErrorKind::kInvalidInput, "{}: regular expression: {} at byte {}", where_, what, at_);
  }
  char peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  bool starts(std::string_view text) const { return in_.substr(at_).starts_with(text); }

  void atom(std::string_view text) {
    atom_ = out_.size();
    out_ += text;
  }

  void step() {
    const char c = peek();
    switch (c) {
      case '\\':
        escape();
        return;
      case '[':
        atom(parse_class(0).atom());
        return;
      case '(':
        open_group();
        return;
      case ')':
        if (groups_.empty()) malformed("unmatched )");
        out_ += c;
        atom_ = groups_.back();
        groups_.pop_back();
        ++at_;
        return;
      case '{':
        interval();
        return;
      case '?':
      case '*':
      case '+':
      case '|':
        out_ += c;
        ++at_;
        return;
      default: {
        const size_t n = std::max<size_t>(utf8_length(in_, at_), 1);
        atom(in_.substr(at_, n));
        at_ += n;
      }
    }
  }

  void open_group() {
    if (groups_.size() >= kMaxDepth) unsupported("nesting deeper than 200");
    groups_.push_back(out_.size());
    if (peek(1) != '?') {
      out_ += peek(1) == '*' ? "(?:" : "(";  // "(*" would start a PCRE2 verb
      ++at_;
      return;
    }
    const char kind = peek(2);
    if (kind == '#') {
      const size_t end = in_.find(')', at_);
      if (end == std::string_view::npos) malformed("unfinished comment");
      groups_.pop_back();
      at_ = end + 1;
      return;
    }
    if (kind == ':' || kind == '=' || kind == '!' || kind == '>') {
      out_ += in_.substr(at_, 3);
      at_ += 3;
      return;
    }
    if (kind == '<') {
      out_ += in_.substr(at_, 3);
      at_ += 3;
      return;
    }
    // Options; Ruby's m is "dot matches newline".
    size_t i = at_ + 2;
    std::string options = "(?";
    for (; i < in_.size() && in_[i] != ':' && in_[i] != ')'; ++i) {
      if (in_[i] == 'm') {
        options += 's';
      } else if (in_[i] == 'i' || in_[i] == 'x' || in_[i] == '-') {
        options += in_[i];
      } else {
        unsupported("group option");
      }
    }
    if (i >= in_.size()) malformed("unfinished group");
    out_ += options + in_[i];
    if (in_[i] == ')') groups_.pop_back();
    at_ = i + 1;
  }

  // {n,m}: Ruby reads a following + as a repetition of the whole, where PCRE2 reads a possessive quantifier.
  void interval() {
    size_t i = at_ + 1;
    std::string low, high;
    while (i < in_.size() && std::isdigit(static_cast<unsigned char>(in_[i]))) low += in_[i++];
    bool comma = false;
    if (i < in_.size() && in_[i] == ',') {
      comma = true;
      ++i;
      while (i < in_.size() && std::isdigit(static_cast<unsigned char>(in_[i]))) high += in_[i++];
    }
    if (i >= in_.size() || in_[i] != '}' || (low.empty() && high.empty())) {
      atom("\\{");  // not an interval: a brace
      ++at_;
      return;
    }
    at_ = i + 1;
    if (low.empty()) low.assign(1, '0');
    if (peek() == '+') {
      ++at_;
      if (low == "1" || low == "0") {  // a repetition of 1 to m: any number
        out_ += low == "1" ? "+" : "*";
        return;
      }
      const std::string repeated = out_.substr(atom_);
      out_.resize(atom_);
      out_ += fmt::format("(?:{}{{{}{}{}}})+", repeated, low, comma ? "," : "", high);
      return;
    }
    out_ += fmt::format("{{{}{}{}}}", low, comma ? "," : "", high);
  }

  void escape() {
    if (at_ + 1 >= in_.size()) malformed("pattern ends in a backslash");
    const char c = peek(1);
    if (std::optional<CharSet> set = class_escape()) {
      atom(set->atom());
      return;
    }
    switch (c) {
      case 'b':
      case 'B': {
        const std::string w = fmt::format("[{}]", kWordItems);
        atom(c == 'b' ? fmt::format("(?:(?<={0})(?!{0})|(?<!{0})(?={0}))", w)
                      : fmt::format("(?:(?<={0})(?={0})|(?<!{0})(?!{0}))", w));
        at_ += 2;
        return;
      }
      case 'A':
      case 'z':
      case 'Z':
      case 'G':
      case 'X':
      case 'R':
      case 'K':
      case 'k':
        atom(in_.substr(at_, 2));
        at_ += 2;
        return;
      default:
        break;
    }
    if (c >= '1' && c <= '9') {
      atom(in_.substr(at_, 2));
      at_ += 2;
      return;
    }
    atom(literal_escape());
  }

  // \n, \x41, \x{41}, \. and other single characters, as PCRE2 writes them.
  std::string literal_escape() {
    const char c = peek(1);
    switch (c) {
      case 'n':
      case 'r':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        at_ += 2;
        return std::string("\\") + c;
      case 'v':
        at_ += 2;
        return "\\x{0B}";
      case '0':
        at_ += 2;
        return "\\x{0}";
      case 'x':
      case 'u': {
        size_t i = at_ + 2;
        std::string hex;
        const bool braces = c == 'x' && i < in_.size() && in_[i] == '{';
        const size_t most = braces ? 8 : c == 'x' ? 2 : 4;
        if (braces) ++i;
        while (i < in_.size() && hex.size() < most && std::isxdigit(static_cast<unsigned char>(in_[i]))) {
          hex += in_[i++];
        }
        if (hex.empty() || (braces && (i >= in_.size() || in_[i] != '}'))) malformed("bad character number");
        at_ = braces ? i + 1 : i;
        return fmt::format("\\x{{{}}}", hex);
      }
      default: {
        if (std::isalpha(static_cast<unsigned char>(c))) unsupported(std::string("escape \\") + c);
        ++at_;
        const size_t n = std::max<size_t>(utf8_length(in_, at_), 1);
        std::string text(in_.substr(at_, n));
        at_ += n;
        return n == 1 ? fmt::format("\\{}", text) : text;
      }
    }
  }

  // \s \S \d \D \w \W \h \H \p{…} \P{…}; nothing where the escape is another one.
  std::optional<CharSet> class_escape() {
    CharSet set;
    switch (peek(1)) {
      case 's':
      case 'S':
        set.items = "\\p{White_Space}";
        break;
      case 'd':
      case 'D':
        set.items = "\\p{Nd}";
        break;
      case 'w':
      case 'W':
        set.items = kWordItems;
        break;
      case 'h':
      case 'H':
        set.items = "0-9A-Fa-f";
        break;
      case 'p':
      case 'P': {
        if (peek(2) != '{') unsupported("\\p without braces");
        const size_t end = in_.find('}', at_);
        if (end == std::string_view::npos) malformed("unfinished \\p{");
        std::string_view name = in_.substr(at_ + 3, end - at_ - 3);
        if (name.starts_with('^')) {
          set.negated = true;
          name.remove_prefix(1);
        }
        set.items = property(name);
        if (peek(1) == 'P') set.negated = !set.negated;
        at_ = end + 1;
        return set;
      }
      default:
        return std::nullopt;
    }
    set.negated = std::isupper(static_cast<unsigned char>(peek(1)));
    at_ += 2;
    return set;
  }

  std::string property(std::string_view name) const {
    std::string key;
    for (const char c : name) {
      if (!std::isalnum(static_cast<unsigned char>(c)) && c != ' ' && c != '-' && c != '_') {
        malformed("bad property name");
      }
      if (std::isalnum(static_cast<unsigned char>(c))) {
        key += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      }
    }
    if (key.empty() || key.size() > 40) malformed("bad property name");
    if (key.size() <= 2) {
      key[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(key[0])));
      return fmt::format("\\p{{{}}}", key);
    }
    for (const LongName& known : kLongNames) {
      if (key == known.onig) return std::string(known.pcre);
    }
    return "\\p{sc:" + std::string(name) +
           "}";  // a script; PCRE2's bare \p{Han} would mean script extensions
  }

  static void add(CharSet& set, const CharSet& item) {
    if (!item.negated && item.parts.empty()) {
      set.items += item.items;
    } else {
      set.parts.push_back(item.atom());
    }
  }

  // "[…]" with Ruby's nested classes and && intersections.
  CharSet parse_class(int depth) {
    if (depth > kMaxDepth) unsupported("nesting deeper than 200");
    ++at_;  // [
    const bool negated = peek() == '^';
    if (negated) ++at_;
    CharSet set;
    std::vector<CharSet> intersected;
    bool first = true;
    for (;; first = false) {
      if (at_ >= in_.size()) malformed("unfinished character class");
      const char c = peek();
      if (c == ']' && !first) {
        ++at_;
        break;
      }
      if (starts("&&")) {
        at_ += 2;
        intersected.push_back(std::move(set));
        set = {};
        continue;
      }
      if (starts("[:")) {
        add(set, posix_class());
        continue;
      }
      if (c == '[') {
        add(set, parse_class(depth + 1));
        continue;
      }
      if (c == '\\') {
        if (std::optional<CharSet> inner = class_escape()) {
          add(set, *inner);
          continue;
        }
      }
      set.items += class_character();
      if (peek() == '-' && peek(1) != ']' && peek(1) != '\0' && peek(1) != '[') {
        if (peek(1) == '\\' && std::string_view("sSdDwWhHpP").find(peek(2)) != std::string_view::npos) {
          set.items += "\\-";
          ++at_;
          continue;
        }
        ++at_;
        set.items += fmt::format("-{}", class_character());
      }
    }
    if (!intersected.empty()) {
      // A && B: a character of the last set that each other set accepts too.
      std::string guard = "(?:";
      for (const CharSet& other : intersected) guard += fmt::format("(?={})", other.atom());
      CharSet both;
      both.parts.push_back(fmt::format("{}{})", guard, set.atom()));
      set = std::move(both);
    }
    set.negated = negated;
    return set;
  }

  std::string class_character() {
    if (peek() == '\\') {
      if (at_ + 1 >= in_.size()) malformed("unfinished character class");
      if (peek(1) == 'b') {
        at_ += 2;
        return "\\x{08}";
      }
      return literal_escape();
    }
    const size_t n = std::max<size_t>(utf8_length(in_, at_), 1);
    std::string text(in_.substr(at_, n));
    at_ += n;
    return n == 1 && std::string_view("-^[]&").find(text[0]) != std::string_view::npos
               ? fmt::format("\\{}", text)
               : text;
  }

  CharSet posix_class() {
    const size_t end = in_.find(":]", at_);
    if (end == std::string_view::npos) malformed("unfinished [: :]");
    std::string_view name = in_.substr(at_ + 2, end - at_ - 2);
    CharSet set;
    if (name.starts_with('^')) {
      set.negated = true;
      name.remove_prefix(1);
    }
    for (const LongName& known : kLongNames) {
      if (name == known.onig) set.items = known.pcre;
    }
    if (set.items.empty()) unsupported("class name");
    at_ = end + 2;
    return set;
  }

  std::string_view in_;
  std::string_view where_;
  std::string out_;
  size_t at_ = 0;
  size_t atom_ = 0;             // where the last atom starts in out_
  std::vector<size_t> groups_;  // where the open groups start in out_
};

}  // namespace

std::string translate_regex(std::string_view onig_pattern, std::string_view where) {
  return Translator(onig_pattern, where).run();
}

}  // namespace qiao::tokenization
