// Operations on text that methods, filters and tests share.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qiao::jinja {

// str.split and str.rsplit; `most` splits, negative: all. On runs of whitespace, and on a separator.
std::vector<std::string_view> split_spaces(std::string_view text, int64_t most, bool from_right);
std::vector<std::string_view> split_text(std::string_view text, std::string_view separator, int64_t most,
                                         bool from_right);
// str.replace; `most` times, negative: all. Throws Error(kTooLarge) before building too long a text.
std::string replace_text(std::string_view text, std::string_view from, std::string_view to, int64_t most);
std::string center_text(std::string_view text, int64_t width, char32_t fill);

bool every_character(std::string_view text, bool (*is)(char32_t));
bool is_all_lower(std::string_view text);  // str.islower
bool is_all_upper(std::string_view text);
bool is_all_title(std::string_view text);

// textwrap.wrap of one paragraph, whitespace kept as it is.
std::vector<std::string> wrap_text(std::string_view text, int64_t width, bool break_long_words,
                                   bool break_on_hyphens);

}  // namespace qiao::jinja
