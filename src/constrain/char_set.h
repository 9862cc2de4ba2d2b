// Sets of Unicode characters as sorted ranges: what a regular expression's class, or a grammar's, stands for.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

namespace qiao::constrain {

inline constexpr uint32_t kLastChar = 0x10FFFF;

struct CharRange {
  uint32_t lo;
  uint32_t hi;
  bool operator==(const CharRange&) const = default;
};

// Never holds surrogates: text is UTF-8.
class CharSet {
 public:
  CharSet() = default;
  CharSet(std::initializer_list<CharRange> ranges);

  static CharSet any() { return {{0, kLastChar}}; }

  void add(uint32_t lo, uint32_t hi);
  void add(const std::vector<CharRange>& others);
  void add(const CharSet& other) { add(std::vector<CharRange>(other.ranges_)); }
  CharSet negated() const;
  CharSet intersected(const CharSet& other) const;
  // Also the other case of each ASCII letter.
  CharSet without_case() const;
  bool contains(uint32_t c) const;

  bool operator==(const CharSet&) const = default;
  bool empty() const { return ranges_.empty(); }
  const std::vector<CharRange>& ranges() const { return ranges_; }  // sorted, disjoint, not adjacent

 private:
  void normalize();
  std::vector<CharRange> ranges_;
};

// A general category of Unicode by its short name ("L", "Lu", …) or its long one.
// Throws Error(kUnsupported) naming `where` for others.
CharSet unicode_class(std::string_view name, std::string_view where);

}  // namespace qiao::constrain
