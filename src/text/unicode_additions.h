// What Unicode gained after version 14: the libraries of the distribution know 14 (PCRE2) and 15.0
// (utf8proc).
#pragma once

#include "text/unicode.h"

namespace qiao::tokenization {

struct UnicodeAddition {
  char32_t first;
  char32_t last;
  Category category;
};
extern const UnicodeAddition kUnicodeAdditions[];  // sorted
extern const size_t kUnicodeAdditionCount;

}  // namespace qiao::tokenization
