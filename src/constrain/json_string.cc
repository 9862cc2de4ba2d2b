#include "constrain/json_string.h"

#include <algorithm>
#include <set>
#include <span>

#include "base/error.h"
#include "base/quote.h"
#include "text/utf8.h"

namespace qiao::constrain {
namespace {

constexpr size_t kMaxExplored = 10'000;
constexpr size_t kMaxLengthTable = 10'000'000;

#define QIAO_DATE                                                                                      \
  "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)" \
  "|02-(?:0[1-9]|1[0-9]|2[0-8]))"                                                                      \
  "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
#define QIAO_TIME                                                                                            \
  "(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\\.[0-9]+)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5]" \
  "[0-9]))"
#define QIAO_BYTE "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#define QIAO_IPV4 QIAO_BYTE "(?:\\." QIAO_BYTE "){3}"
#define QIAO_H16 "[0-9A-Fa-f]{1,4}"
#define QIAO_LS32 "(?:" QIAO_H16 ":" QIAO_H16 "|" QIAO_IPV4 ")"
#define QIAO_LABEL "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#define QIAO_UUID(version) \
  "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-" version "[0-9A-Fa-f]{3}-[89ABab][0-9A-Fa-f]{3}-[0-9A-Fa-f]{12}"
#define QIAO_POINTER "(?:/(?:[^/~]|~[01])*)*"
// RFC 3986 with `more` characters (RFC 3987's), its authority without IPv6 literals. In a path's first
// segment of a relative reference no colon may stand.
#define QIAO_UNRESERVED(more) "A-Za-z0-9._~!$&'()*+,;=" more
#define QIAO_CHARS(more) "(?:[" QIAO_UNRESERVED(more) ":@-]|%[0-9A-Fa-f]{2})"
#define QIAO_NO_COLON(more) "(?:[" QIAO_UNRESERVED(more) "@-]|%[0-9A-Fa-f]{2})"
#define QIAO_SEGMENTS(more) "(?:/" QIAO_CHARS(more) "*)*"
#define QIAO_ABSOLUTE(more) \
  "(?://(?:(?:[" QIAO_UNRESERVED(more) ":-]|%[0-9A-Fa-f]{2})*@)?(?:[" QIAO_UNRESERVED(                    \
      more) "-]|%[0-9A-Fa-f]{2})*(?::[0-9]*)?" QIAO_SEGMENTS(more) "|/(?:" QIAO_CHARS(more) "+" QIAO_SEGMENTS( \
      more) ")?"
#define QIAO_TAIL(more) "(?:\\?(?:" QIAO_CHARS(more) "|[/?])*)?(?:#(?:" QIAO_CHARS(more) "|[/?])*)?"
#define QIAO_URI(more)                                                                   \
  "[A-Za-z][A-Za-z0-9+.-]*:" QIAO_ABSOLUTE(more) "|" QIAO_CHARS(more) "+" QIAO_SEGMENTS( \
      more) "|)" QIAO_TAIL(more)
#define QIAO_RELATIVE(more) \
  QIAO_ABSOLUTE(more) "|" QIAO_NO_COLON(more) "+" QIAO_SEGMENTS(more) "|)" QIAO_TAIL(more)
#define QIAO_BEYOND_ASCII "\\u{A0}-\\u{D7FF}\\u{F900}-\\u{FDCF}\\u{FDF0}-\\u{FFEF}\\u{10000}-\\u{EFFFD}"
#define QIAO_IDN_LABEL                                                                                     \
  "[A-Za-z0-9" QIAO_BEYOND_ASCII "](?:[A-Za-z0-9" QIAO_BEYOND_ASCII "-]{0,61}[A-Za-z0-9" QIAO_BEYOND_ASCII \
  "])?"
#define QIAO_VARIABLE \
  "(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})(?:\\.?(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2}))*(?::[1-9][0-9]{0,3}|\\*)?"

struct Format {
  std::string_view name;
  const char* pattern;
};
constexpr Format kFormats[] = {
    {"date", "^" QIAO_DATE "$"},  // RFC 3339
    {"time", "^" QIAO_TIME "$"},  // RFC 3339
    {"date-time", "^" QIAO_DATE "[Tt]" QIAO_TIME "$"},
    {"duration",
     "^P(?:[0-9]+W|(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)(?:T(?:[0-9]+H(?:[0-9]+M(?:"
     "[0-9]+S)?)?"
     "|[0-9]+M(?:[0-9]+S)?|[0-9]+S))?|T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))$"},
    {"uuid1", "^" QIAO_UUID("1") "$"},  // these with a version are pydantic's
    {"uuid3", "^" QIAO_UUID("3") "$"},
    {"uuid4", "^" QIAO_UUID("4") "$"},
    {"uuid5", "^" QIAO_UUID("5") "$"},
    {"byte", "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"},  // OpenAPI's, of RFC 4648
    {"binary", ""},
    {"password", ""},
    {"uuid", "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$"},  // RFC 4122
    {"email",
     "^(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*|\"(?:[ !#-\\[\\]-~]|\\\\[ "
     "-~])*\")@"
     "(?:" QIAO_LABEL "(?:\\." QIAO_LABEL ")*|\\[" QIAO_IPV4 "\\])$"},
    {"idn-email",  // RFC 6531: letters of any script; what IDNA asks of labels beyond that is not looked at
     "^(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~" QIAO_BEYOND_ASCII
     "-]+(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~" QIAO_BEYOND_ASCII "-]+)*|\"(?:[ !#-\\[\\]-~" QIAO_BEYOND_ASCII
     "]|\\\\[ -~])*\")@(?:" QIAO_IDN_LABEL "(?:\\." QIAO_IDN_LABEL ")*|\\[" QIAO_IPV4 "\\])$"},
    {"ipv4", "^" QIAO_IPV4 "$"},
    {"ipv6",  // RFC 3986
     "^(?:(?:" QIAO_H16 ":){6}" QIAO_LS32 "|::(?:" QIAO_H16 ":){5}" QIAO_LS32 "|(?:" QIAO_H16
     ")?::(?:" QIAO_H16 ":){4}" QIAO_LS32 "|(?:(?:" QIAO_H16 ":){0,1}" QIAO_H16 ")?::(?:" QIAO_H16
     ":){3}" QIAO_LS32 "|(?:(?:" QIAO_H16 ":){0,2}" QIAO_H16 ")?::(?:" QIAO_H16 ":){2}" QIAO_LS32
     "|(?:(?:" QIAO_H16 ":){0,3}" QIAO_H16 ")?::" QIAO_H16 ":" QIAO_LS32 "|(?:(?:" QIAO_H16 ":){0,4}" QIAO_H16
     ")?::" QIAO_LS32 "|(?:(?:" QIAO_H16 ":){0,5}" QIAO_H16 ")?::" QIAO_H16 "|(?:(?:" QIAO_H16
     ":){0,6}" QIAO_H16 ")?::)$"},
    {"hostname", "^" QIAO_LABEL "(?:\\." QIAO_LABEL ")*$"},  // RFC 1123; the whole length is not looked at
    {"uri", "^" QIAO_URI("") "$"},
    {"uri-reference", "^(?:" QIAO_URI("") "|" QIAO_RELATIVE("") ")$"},
    {"iri", "^" QIAO_URI(QIAO_BEYOND_ASCII) "$"},
    {"iri-reference", "^(?:" QIAO_URI(QIAO_BEYOND_ASCII) "|" QIAO_RELATIVE(QIAO_BEYOND_ASCII) ")$"},
    {"uri-template",  // RFC 6570
     "^(?:[^\\u0000-\\u0020\\u007F\"'%<>\\\\^`{|}]|%[0-9A-Fa-f]{2}|\\{[+#./;?&=,!@|]?" QIAO_VARIABLE
     "(?:," QIAO_VARIABLE ")*\\})*$"},
    {"json-pointer", "^" QIAO_POINTER "$"},  // RFC 6901
    {"relative-json-pointer", "^(?:0|[1-9][0-9]*)(?:#|" QIAO_POINTER ")$"},
};

std::u32string characters_of(std::string_view utf8) {
  std::u32string characters;
  for (size_t at = 0, length = 0; at < utf8.size(); at += length) {
    characters += tokenization::utf8_decode(utf8, at, &length);
  }
  return characters;
}

Regex one_character(char32_t c) { return Regex::one_of(CharSet{{c, c}}); }

// Texts as a tree of their common beginnings: sets of states stay small however many there are. `texts` are
// sorted, different, and alike in their first `same` characters.
uint32_t add_texts(Nfa& nfa, std::span<const std::u32string> texts, size_t same, uint32_t match, int depth) {
  constexpr int kMaxTreeDepth = 500;
  const auto chain = [&](const std::u32string& text, size_t begin, size_t end, uint32_t next) {
    for (size_t i = end; i-- > begin;) next = nfa.regex(one_character(text[i]), next);
    return next;
  };
  if (texts.size() == 1) return chain(texts[0], same, texts[0].size(), match);
  const std::u32string& first = texts.front();
  size_t common = same;
  while (common < first.size() && first[common] == texts.back()[common]) ++common;
  std::optional<uint32_t> all;
  const auto branch = [&](uint32_t start) { all = all ? nfa.split(start, *all) : start; };
  if (first.size() == common) {
    branch(match);
    texts = texts.subspan(1);
  }
  for (size_t begin = 0; begin < texts.size();) {
    size_t end = begin + 1;
    while (end < texts.size() && texts[end][common] == texts[begin][common] && depth < kMaxTreeDepth) ++end;
    branch(add_texts(nfa, texts.subspan(begin, end - begin), common, match, depth + 1));
    begin = end;
  }
  return chain(first, same, common, *all);
}

}  // namespace

const char* format_pattern(std::string_view format) {
  for (const Format& known : kFormats) {
    if (known.name == format) return known.pattern;
  }
  return nullptr;
}

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (const Format& known : kFormats) names.emplace_back(known.name);
  return names;
}

StringSpec StringSpec::both(const StringSpec& other) const {
  StringSpec result = *this;
  for (const Pattern& pattern : other.patterns) {
    if (std::find(result.patterns.begin(), result.patterns.end(), pattern) == result.patterns.end()) {
      result.patterns.push_back(pattern);
    }
  }
  result.min = std::max(min, other.min);
  result.max = std::min(max, other.max);
  if (other.literals) {
    if (result.literals) {
      const std::set<std::string_view> others(other.literals->begin(), other.literals->end());
      std::erase_if(*result.literals, [&](const std::string& text) { return !others.contains(text); });
    } else {
      result.literals = other.literals;
    }
  }
  return result;
}

std::shared_ptr<LazyDfa> make_tag_dfa(const std::vector<StringSpec::Pattern>& patterns,
                                      const std::vector<std::string>& names, std::string_view where) {
  Nfa nfa(where);
  uint32_t start = nfa.regex(Regex::one_of({}), 0);
  for (size_t i = 0; i < patterns.size(); ++i) {
    const auto& [source, negative, format] = patterns[i];
    const char* known = format ? format_pattern(source) : nullptr;
    const Regex regex =
        parse_regex(known != nullptr ? std::string_view(known) : std::string_view(source),
                    RegexDialect::kEcma, fmt::format("{}: pattern {}", where, quote_text(source, 60)));
    // Found anywhere in the text, as JSON Schema says.
    const uint32_t body = nfa.regex(regex, nfa.any_text(nfa.match(static_cast<uint32_t>(i))));
    start = nfa.split(nfa.any_text(body), start);
  }
  const auto name_tag = static_cast<uint32_t>(patterns.size());
  const uint32_t name_match = nfa.match(name_tag);
  std::vector<std::u32string> texts;
  for (const std::string& name : names) texts.push_back(characters_of(name));
  std::sort(texts.begin(), texts.end());
  texts.erase(std::unique(texts.begin(), texts.end()), texts.end());
  if (!texts.empty()) start = nfa.split(add_texts(nfa, texts, 0, name_match, 0), start);
  return std::make_shared<LazyDfa>(std::move(nfa), start);
}

StringLanguage::StringLanguage(const StringSpec& spec, std::string_view where)
    : min_(spec.min), max_(spec.max) {
  if (spec.literals) {
    StringSpec rest = spec;
    rest.literals.reset();
    StringLanguage others(rest, where);
    std::vector<std::string> kept;
    for (const std::string& text : *spec.literals) {
      if (others.contains(text)) kept.push_back(text);
    }
    finite_ = true;
    min_ = 0;
    max_ = kUnbounded;
    if (kept.size() == 1) {
      literal_only_ = true;
      literal_ = characters_of(kept[0]);
      return;
    }
    dfa_ = make_tag_dfa({}, kept, where);
    accept_ = {0};
    liveness_ = Liveness::kNotEmpty;
    return;
  }
  if (spec.patterns.empty()) return;
  dfa_ = make_tag_dfa(spec.patterns, {}, where);
  for (uint32_t i = 0; i < spec.patterns.size(); ++i) {
    if (!spec.patterns[i].negative) accept_.push_back(i);
  }
  const bool one = spec.patterns.size() == 1 && !spec.patterns[0].negative;
  liveness_ = one && !counted() ? Liveness::kNotEmpty : Liveness::kTables;
  if (liveness_ == Liveness::kTables) analyse();
}

StringLanguage::StringLanguage(std::shared_ptr<LazyDfa> dfa, std::vector<uint32_t> accept, uint32_t min,
                               uint32_t max)
    : dfa_(std::move(dfa)), accept_(std::move(accept)), min_(min), max_(max), liveness_(Liveness::kTables) {
  analyse();
}

// The states that characters lead to. The empty set leads to itself, and lives where no tag is wanted.
template <typename Each>
void StringLanguage::each_successor(uint32_t state, Each&& each) {
  uint64_t covered = 0;
  for (const LazyDfa::Step& step : dfa_->steps(state)) {
    each(step.to);
    covered += step.hi - step.lo + 1;
  }
  if (accept_.empty() && covered < kLastChar + 1 - 2048) each(LazyDfa::kEmpty);
}

void StringLanguage::analyse() {
  const size_t states = dfa_->explore(kMaxExplored);
  std::vector<std::vector<uint32_t>> next(states);
  for (uint32_t s = 0; s < states; ++s) {
    each_successor(s, [&](uint32_t to) { next[s].push_back(to); });
    std::sort(next[s].begin(), next[s].end());
    next[s].erase(std::unique(next[s].begin(), next[s].end()), next[s].end());
  }
  std::vector<bool> now(states);
  for (uint32_t s = 0; s < states; ++s) now[s] = state_accepts(s);
  ever_ = now;
  for (bool changed = true; changed;) {
    changed = false;
    for (uint32_t s = static_cast<uint32_t>(states); s-- > 0;) {
      if (ever_[s]) continue;
      if (std::any_of(next[s].begin(), next[s].end(), [&](uint32_t to) { return ever_[to]; })) {
        ever_[s] = changed = true;
      }
    }
  }
  if (!counted()) return;
  // Beyond min + as many characters as there are states nothing new is reached.
  const size_t longest = std::min<size_t>(max_, size_t{min_} + states + 1);
  reach_.push_back(now);
  while (reach_.size() <= longest && !steady_) {
    if (reach_.size() * states > kMaxLengthTable) {
      throw_error(ErrorKind::kTooLarge,
                  "a pattern together with lengths of {} characters needs too much memory", longest);
    }
    std::vector<bool> before(states);
    for (uint32_t s = 0; s < states; ++s) {
      before[s] = std::any_of(next[s].begin(), next[s].end(), [&](uint32_t to) { return reach_.back()[to]; });
    }
    steady_ = before == reach_.back();
    if (!steady_) reach_.push_back(std::move(before));
  }
}

bool StringLanguage::live(At at) {
  if (at.count > max_) return false;
  if (liveness_ == Liveness::kAlways) return literal_only_ || min_ <= max_;
  if (liveness_ == Liveness::kNotEmpty) return at.state != LazyDfa::kEmpty;
  if (!counted()) return ever_[at.state];
  const size_t from = need(at);
  const size_t to = max_ == kUnbounded ? SIZE_MAX : max_ - at.count;
  for (size_t t = from; t <= to && t < reach_.size(); ++t) {
    if (reach_[t][at.state]) return true;
  }
  return steady_ && to >= reach_.size() && from <= to && reach_.back()[at.state];
}

size_t StringLanguage::work() const {
  return (dfa_ == nullptr ? 0 : dfa_->work()) + (reach_.empty() ? 0 : reach_.size() * reach_[0].size()) +
         literal_.size() + 100;
}

bool StringLanguage::empty() { return !live(start()); }

bool StringLanguage::accepts(At at) const {
  if (at.count < min_ || at.count > max_) return false;
  if (literal_only_) return at.state == literal_.size();
  return dfa_ == nullptr || state_accepts(at.state);
}

bool StringLanguage::contains(std::string_view utf8) {
  At at = start();
  for (size_t i = 0, length = 0; i < utf8.size(); i += length) {
    const uint32_t c = tokenization::utf8_decode(utf8, i, &length);
    if (dfa_ != nullptr) at.state = dfa_->next(at.state, c);
    ++at.count;
  }
  QIAO_ASSERT(!literal_only_);
  return accepts(at);
}

bool StringLanguage::is_any(At at) const {
  if (literal_only_) return false;
  return dfa_ == nullptr || (accept_.empty() && at.state == LazyDfa::kEmpty);
}

void StringLanguage::steps(At at, CharSteps& out) {
  if (literal_only_) {
    if (at.state < literal_.size()) {
      out.steps.push_back({literal_[at.state], literal_[at.state], At{at.state + 1, 0}.packed()});
    }
    return;
  }
  uint32_t count = at.count;
  if (counted()) count = max_ == kUnbounded ? std::min(at.count + 1, min_) : at.count + 1;
  const auto add = [&](uint32_t lo, uint32_t hi, uint32_t state) {
    const At to{state, count};
    if (live(to)) out.steps.push_back({lo, hi, to.packed()});
  };
  const auto gap = [&](uint32_t lo, uint32_t hi) {  // without the surrogates
    if (lo < 0xD800) add(lo, std::min<uint32_t>(hi, 0xD7FF), LazyDfa::kEmpty);
    if (hi > 0xDFFF) add(std::max<uint32_t>(lo, 0xE000), hi, LazyDfa::kEmpty);
  };
  uint32_t next = 0;
  if (dfa_ != nullptr) {
    for (const LazyDfa::Step& step : dfa_->steps(at.state)) {
      if (accept_.empty() && step.lo > next) gap(next, step.lo - 1);
      add(step.lo, step.hi, step.to);
      next = step.hi + 1;
    }
    if (!accept_.empty()) return;
  }
  if (next <= kLastChar) gap(next, kLastChar);
}

}  // namespace qiao::constrain
