// Python's text operations that depend on Unicode, over UTF-8.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace qiao::jinja {

// In code points; `text` is valid UTF-8, as everywhere here.
size_t utf8_length(std::string_view text);
// Byte offset of the code point number `index`, counted from byte `from`; text.size() past the end.
size_t utf8_offset(std::string_view text, size_t index, size_t from = 0);
// The code point at byte `at`, which is moved past it.
char32_t utf8_next(std::string_view text, size_t& at);
// The code point that ends before byte `at`, which is moved to its start.
char32_t utf8_previous(std::string_view text, size_t& at);
void append_utf8(std::string& out, char32_t c);
// Byte offset of the first broken sequence; npos where there is none.
size_t find_broken_utf8(std::string_view text);
// `text` with every broken byte as U+FFFD.
std::string repair_utf8(std::string_view text);
std::vector<char32_t> to_code_points(std::string_view text);
std::string to_utf8(const std::vector<char32_t>& text);

// Python's str.isspace and so on, of one character.
bool is_space(char32_t c);
bool is_line_break(char32_t c);
bool is_alpha(char32_t c);
bool is_decimal(char32_t c);
bool is_digit(char32_t c);
bool is_numeric(char32_t c);
bool is_lower(char32_t c);
bool is_upper(char32_t c);
bool is_title(char32_t c);
bool is_printable(char32_t c);
bool is_identifier_start(char32_t c);
bool is_identifier_part(char32_t c);

std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
std::string to_casefold(std::string_view text);
std::string to_title(std::string_view text);        // str.title
std::string to_capitalized(std::string_view text);  // str.capitalize
std::string to_swapped_case(std::string_view text);

// str.splitlines.
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);
// str.strip and its kin: of whitespace, or of the code points of `characters`.
std::string_view strip(std::string_view text, bool left, bool right,
                       const std::string_view* characters = nullptr);

}  // namespace qiao::jinja
