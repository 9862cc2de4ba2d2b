#include "constrain/regex.h"

#include "text/utf8.h"

namespace qiao::constrain {

Regex Regex::one_of(CharSet set) {
  Regex result{.kind = Kind::kSet};
  result.set = std::move(set);
  return result;
}

Regex Regex::literal(std::string_view utf8) {
  std::vector<Regex> parts;
  for (size_t at = 0; at < utf8.size();) {
    size_t length = 0;
    const uint32_t c = tokenization::utf8_decode(utf8, at, &length);
    at += length;
    parts.push_back(one_of(CharSet{{c, c}}));
  }
  return concat(std::move(parts));
}

Regex Regex::concat(std::vector<Regex> children) {
  if (children.empty()) return {};
  if (children.size() == 1) return std::move(children.front());
  return {.kind = Kind::kConcat, .children = std::move(children)};
}

Regex Regex::alternate(std::vector<Regex> children) {
  if (children.size() == 1) return std::move(children.front());
  return {.kind = Kind::kAlternate, .children = std::move(children)};
}

Regex Regex::repeat(Regex child, uint32_t min, uint32_t max) {
  Regex result{.kind = Kind::kRepeat, .min = min, .max = max};
  result.children.push_back(std::move(child));
  return result;
}

Regex Regex::call(uint32_t rule) { return {.kind = Kind::kCall, .min = rule}; }

}  // namespace qiao::constrain
