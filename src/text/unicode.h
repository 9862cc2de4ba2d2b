// Character properties of Unicode 16 and the normalization forms, over utf8proc (which knows 15.0) and a
// table of what came after.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "text/utf8.h"

namespace qiao::tokenization {

// General categories, in utf8proc's order.
enum class Category : uint8_t {
  kCn,
  kLu,
  kLl,
  kLt,
  kLm,
  kLo,
  kMn,
  kMc,
  kMe,
  kNd,
  kNl,
  kNo,
  kPc,
  kPd,
  kPs,
  kPe,
  kPi,
  kPf,
  kPo,
  kSm,
  kSc,
  kSk,
  kSo,
  kZs,
  kZl,
  kZp,
  kCc,
  kCf,
  kCs,
  kCo,
};

Category category(char32_t c);
bool is_letter(char32_t c);
bool is_mark(char32_t c);
bool is_number(char32_t c);  // Nd, Nl, No
bool is_space(char32_t c);   // the White_Space property
bool is_ascii_punctuation(char32_t c);
bool is_word(
    char32_t c);  // Rust regex's \w: letters, marks, Nd, Pc, letter-like numbers and symbols, joiners

// A character that `added` regular-expression tables (Unicode 14) know, of the same category and the same
// length in UTF-8; `c` itself where they know it. Keeps patterns at Unicode 16 with an older PCRE2.
char32_t older_equivalent(char32_t c);

enum class NormalizationForm { kNfc, kNfd, kNfkc, kNfkd };
// Linear in text.size(), also for long runs of combining marks. Requires well-formed UTF-8.
std::string normalize(std::string_view text, NormalizationForm form);

// Character by character, without context, as Rust's char::to_lowercase.
std::string lowercase(std::string_view text);

// Where the grapheme cluster that starts at `at` ends (extended clusters). Requires at < text.size().
size_t grapheme_end(std::string_view text, size_t at);

}  // namespace qiao::tokenization
