// GPT-2's byte alphabet: every byte as a printable character, so that vocabularies of bytes are text.
#pragma once

#include <string>
#include <string_view>

#include "text/utf8.h"

namespace qiao::tokenization {

// Appends each byte of `text` as its character. A character that stands for a broken byte is that one byte.
void append_byte_alphabet(std::string_view text, const InvalidBytes& invalid, std::string& out);

// The byte that a character stands for; -1 where it stands for none.
int byte_of_character(char32_t c);

// Appends the bytes that `spelling` stands for; false, and nothing appended, where a character stands for
// none.
bool append_from_byte_alphabet(std::string_view spelling, std::string& out);

}  // namespace qiao::tokenization
