#include "constrain/char_set.h"

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include "base/error.h"
#include "base/quote.h"
#include "text/unicode.h"

namespace qiao::constrain {
namespace {

constexpr uint32_t kFirstSurrogate = 0xD800, kLastSurrogate = 0xDFFF;

// In the order of tokenization::Category.
constexpr std::array<std::string_view, 30> kCategoryNames = {
    "Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps",
    "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co"};

using CategoryRanges = std::array<std::vector<CharRange>, kCategoryNames.size()>;

const CategoryRanges& category_ranges() {
  static const CategoryRanges table = [] {
    CategoryRanges made;
    for (uint32_t c = 0; c <= kLastChar; ++c) {
      auto& ranges = made[static_cast<size_t>(tokenization::category(c))];
      if (!ranges.empty() && ranges.back().hi + 1 == c) {
        ranges.back().hi = c;
      } else {
        ranges.push_back({c, c});
      }
    }
    return made;
  }();
  return table;
}

// Of each category, and of all that share a first letter: put together once, an expression may name them
// often.
const std::map<std::string_view, CharSet>& category_sets() {
  static const auto sets = [] {
    std::map<std::string_view, CharSet> made;
    for (size_t i = 0; i < kCategoryNames.size(); ++i) {
      made[kCategoryNames[i]].add(category_ranges()[i]);
      made[kCategoryNames[i].substr(0, 1)].add(category_ranges()[i]);
    }
    return made;
  }();
  return sets;
}

}  // namespace

CharSet::CharSet(std::initializer_list<CharRange> ranges) : ranges_(ranges) { normalize(); }

void CharSet::add(uint32_t lo, uint32_t hi) {
  ranges_.push_back({lo, hi});
  normalize();
}

void CharSet::add(const std::vector<CharRange>& others) {
  ranges_.insert(ranges_.end(), others.begin(), others.end());
  normalize();
}

void CharSet::normalize() {
  std::vector<CharRange> kept;
  for (const CharRange& range : ranges_) {
    if (range.lo < kFirstSurrogate && range.hi >= kFirstSurrogate) {
      kept.push_back({range.lo, kFirstSurrogate - 1});
    } else if (range.hi < kFirstSurrogate) {
      kept.push_back(range);
    }
    if (range.hi > kLastSurrogate) kept.push_back({std::max(range.lo, kLastSurrogate + 1), range.hi});
  }
  std::sort(kept.begin(), kept.end(), [](const CharRange& a, const CharRange& b) { return a.lo < b.lo; });
  ranges_.clear();
  for (const CharRange& range : kept) {
    if (!ranges_.empty() && range.lo <= ranges_.back().hi + 1) {
      ranges_.back().hi = std::max(ranges_.back().hi, range.hi);
    } else {
      ranges_.push_back(range);
    }
  }
}

CharSet CharSet::negated() const {
  CharSet result;
  uint32_t next = 0;
  for (const CharRange& range : ranges_) {
    if (range.lo > next) result.ranges_.push_back({next, range.lo - 1});
    next = range.hi + 1;
  }
  if (next <= kLastChar) result.ranges_.push_back({next, kLastChar});
  result.normalize();
  return result;
}

CharSet CharSet::intersected(const CharSet& other) const {
  CharSet outside = negated();
  outside.add(other.negated());
  return outside.negated();
}

CharSet CharSet::without_case() const {
  CharSet result = *this;
  for (const CharRange& range : ranges_) {
    const auto shift = [&](uint32_t lo, uint32_t hi, int by) {
      const uint32_t from = std::max(range.lo, lo), to = std::min(range.hi, hi);
      if (from <= to) {
        result.ranges_.push_back({from + static_cast<uint32_t>(by), to + static_cast<uint32_t>(by)});
      }
    };
    shift('a', 'z', -32);
    shift('A', 'Z', 32);
  }
  result.normalize();
  return result;
}

bool CharSet::contains(uint32_t c) const {
  const auto after =
      std::upper_bound(ranges_.begin(), ranges_.end(), c,
                       [](uint32_t value, const CharRange& range) { return value < range.lo; });
  return after != ranges_.begin() && c <= (after - 1)->hi;
}

CharSet unicode_class(std::string_view name, std::string_view where) {
  constexpr std::pair<std::string_view, std::string_view> kLongNames[] = {{"Letter", "L"},
                                                                          {"Lowercase_Letter", "Ll"},
                                                                          {"Uppercase_Letter", "Lu"},
                                                                          {"Mark", "M"},
                                                                          {"Number", "N"},
                                                                          {"Decimal_Number", "Nd"},
                                                                          {"Punctuation", "P"},
                                                                          {"Symbol", "S"},
                                                                          {"Separator", "Z"},
                                                                          {"Other", "C"},
                                                                          {"Titlecase_Letter", "Lt"},
                                                                          {"digit", "Nd"},
                                                                          {"Modifier_Letter", "Lm"}};
  std::string_view wanted = name;
  for (const std::string_view prefix : {"General_Category=", "gc="}) {
    if (wanted.starts_with(prefix)) wanted.remove_prefix(prefix.size());
  }
  for (const auto& [longer, shorter] : kLongNames) {
    if (wanted == longer) wanted = shorter;
  }
  if (const auto known = category_sets().find(wanted); known != category_sets().end()) return known->second;
  throw_error(ErrorKind::kUnsupported,
              "{}: \\p{{{}}} is not supported: general categories are (L, Lu, Nd, P, …)", where,
              printable(name));
}

}  // namespace qiao::constrain
