#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "text/library_tables.h"
#include "text/unicode_additions.h"

namespace qiao::tokenization {
namespace {

const UnicodeAddition* find_addition(char32_t c) {
  if (c < kUnicodeAdditions[0].first) return nullptr;
  const UnicodeAddition* end = kUnicodeAdditions + kUnicodeAdditionCount;
  const UnicodeAddition* it = std::upper_bound(
      kUnicodeAdditions, end, c, [](char32_t value, const UnicodeAddition& a) { return value < a.first; });
  if (it == kUnicodeAdditions) return nullptr;
  --it;
  return c <= it->last ? it : nullptr;
}

// The planes that text lives in, looked up once: a category costs one load.
class CategoryTable {
 public:
  CategoryTable() : table_(kSize) {
    for (char32_t c = 0; c < kSize; ++c) table_[c] = compute(c);
  }
  Category at(char32_t c) const { return c < kSize ? table_[c] : compute(c); }

 private:
  static constexpr char32_t kSize = 0x20000;
  static Category compute(char32_t c) {
    if (const UnicodeAddition* addition = find_addition(c)) return addition->category;
    return static_cast<Category>(utf8proc_category(static_cast<utf8proc_int32_t>(c)));
  }
  std::vector<Category> table_;
};

static_assert(static_cast<int>(Category::kLu) == UTF8PROC_CATEGORY_LU);
static_assert(static_cast<int>(Category::kNd) == UTF8PROC_CATEGORY_ND);
static_assert(static_cast<int>(Category::kPo) == UTF8PROC_CATEGORY_PO);
static_assert(static_cast<int>(Category::kZp) == UTF8PROC_CATEGORY_ZP);
static_assert(static_cast<int>(Category::kCo) == UTF8PROC_CATEGORY_CO);

// Of letters that utf8proc does not know yet (Unicode 16 and 17).
char32_t added_lowercase(char32_t c) {
  if (c < 0x1C89) return c;
  if (c == 0xA7CB) return 0x264;
  if (c == 0xA7DC) return 0x19B;
  for (const char32_t odd : {0x1C89, 0xA7CC, 0xA7CE, 0xA7D2, 0xA7D4, 0xA7DA}) {
    if (c == odd) return c + 1;
  }
  if (c >= 0x10D50 && c <= 0x10D65) return c + 0x20;
  if (c >= 0x16EA0 && c <= 0x16EB8) return c + 0x1B;
  return c;
}

bool in(Category c, Category first, Category last) { return c >= first && c <= last; }

bool is_han_addition(char32_t c) { return c >= 0x2B739; }  // CJK extensions B, H and I

}  // namespace

Category category(char32_t c) {
  static const CategoryTable table;
  return table.at(c);
}

bool is_letter(char32_t c) { return in(category(c), Category::kLu, Category::kLo); }
bool is_mark(char32_t c) { return in(category(c), Category::kMn, Category::kMe); }
bool is_number(char32_t c) { return in(category(c), Category::kNd, Category::kNo); }

bool is_space(char32_t c) {
  if (c <= 0x20) return c == 0x20 || (c >= 9 && c <= 13);
  if (c < 0x1680) return c == 0x85 || c == 0xA0;
  return c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool is_ascii_punctuation(char32_t c) {
  return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) ||
         (c >= 0x7B && c <= 0x7E);
}

bool is_word(char32_t c) {
  const Category k = category(c);
  if (in(k, Category::kLu, Category::kNl) || k == Category::kPc) return true;
  // Other_Alphabetic symbols (circled and squared letters) and Join_Control.
  return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
         (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

char32_t older_equivalent(char32_t c) {
  const UnicodeAddition* addition = find_addition(c);
  if (addition == nullptr) return c;
  const bool three_bytes = c < 0x10000;
  switch (addition->category) {
    case Category::kLu:
      return three_bytes ? 0x1E00 : 0x10400;
    case Category::kLl:
      return three_bytes ? 0x1E01 : 0x10428;
    case Category::kLm:
      return 0x16B40;
    case Category::kLo:
      return is_han_addition(c) ? 0x20000 : 0x10480;
    case Category::kMn:
      return three_bytes ? 0x0F35 : 0x101FD;
    case Category::kMc:
      return three_bytes ? 0x0903 : 0x11000;
    case Category::kNd:
      return 0x104A0;
    case Category::kNo:
      return 0x10107;
    case Category::kPd:
      return 0x10EAD;
    case Category::kPo:
      return three_bytes ? 0x2016 : 0x10100;
    case Category::kSm:
      return 0x1D6C1;
    case Category::kCf:
      return 0x110BD;
    default:
      return three_bytes ? 0x2100 : 0x1F000;
  }
}

std::string normalize(std::string_view text, NormalizationForm form) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; })) {
    return std::string(text);
  }
  const bool compatible = form == NormalizationForm::kNfkc || form == NormalizationForm::kNfkd;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
                                                      (compatible ? UTF8PROC_COMPAT : 0));
  std::vector<utf8proc_int32_t> chars;
  chars.reserve(text.size());
  utf8proc_int32_t expanded[32];  // the longest full decomposition is 18
  for (size_t i = 0; i < text.size();) {
    size_t n;
    const char32_t c = utf8_decode(text, i, &n);
    i += n;
    if ((compatible && lacks_library_compatibility(c)) || c == 0x11938) {
      chars.push_back(static_cast<utf8proc_int32_t>(c));
      continue;
    }
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), expanded, 32, options, nullptr);
    QIAO_ASSERT(count >= 0 && count <= 32);
    chars.insert(chars.end(), expanded, expanded + count);
  }
  // utf8proc's own reordering swaps neighbours (quadratic in a run of marks); sorting each run is the same
  // order.
  const auto combining = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (size_t i = 0; i < chars.size();) {
    if (combining(chars[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (end < chars.size() && combining(chars[end]) != 0) ++end;
    std::stable_sort(chars.begin() + static_cast<ptrdiff_t>(i), chars.begin() + static_cast<ptrdiff_t>(end),
                     [&](utf8proc_int32_t a, utf8proc_int32_t b) { return combining(a) < combining(b); });
    i = end;
  }
  if (form == NormalizationForm::kNfc || form == NormalizationForm::kNfkc) {
    const auto compose = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    const utf8proc_ssize_t count =
        utf8proc_normalize_utf32(chars.data(), static_cast<utf8proc_ssize_t>(chars.size()), compose);
    QIAO_ASSERT(count >= 0 && static_cast<size_t>(count) <= chars.size());
    chars.resize(static_cast<size_t>(count));
  }
  std::string out;
  out.reserve(text.size());
  for (const utf8proc_int32_t c : chars) utf8_append(out, static_cast<char32_t>(c));
  return out;
}

std::string lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    size_t n;
    const char32_t c = utf8_decode(text, i, &n);
    if (c < 0x80) {
      out.push_back(static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c));
    } else if (c == 0x130) {
      out.append("i\xCC\x87");  // the one character whose lower case is two
    } else {
      const char32_t added = added_lowercase(c);
      utf8_append(out, added != c
                           ? added
                           : static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
    }
    i += n;
  }
  return out;
}

size_t grapheme_end(std::string_view text, size_t at) {
  size_t n;
  char32_t previous = utf8_decode(text, at, &n);
  at += n;
  utf8proc_int32_t state = 0;
  while (at < text.size()) {
    const char32_t next = utf8_decode(text, at, &n);
    if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(previous),
                                         static_cast<utf8proc_int32_t>(next), &state)) {
      break;
    }
    previous = next;
    at += n;
  }
  return at;
}

}  // namespace qiao::tokenization
