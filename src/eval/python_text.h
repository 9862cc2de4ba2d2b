// Text as Python's str and re see it: lm-evaluation-harness counts and cuts by them. All require UTF-8.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace qiao::eval {

// str.isspace() of one character: Unicode's White_Space and the four ASCII separators.
bool is_python_space(char32_t c);

// len(re.split(r"\s+", text)): runs of white space, and one.
int64_t count_words(std::string_view text);
// len(text).
int64_t count_characters(std::string_view text);
// How many bytes text.rstrip() leaves.
size_t length_without_trailing_space(std::string_view text);
// text.strip().
std::string_view strip(std::string_view text);

// Without the 32 characters of string.punctuation.
std::string without_punctuation(std::string_view text);

}  // namespace qiao::eval
