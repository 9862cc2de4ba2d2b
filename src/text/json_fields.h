// Typed fields of tokenizer.json's objects, with errors that name the field.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/json.h"

namespace qiao::tokenization {

// Sequences nest at most this deep.
inline constexpr int kMaxNesting = 16;

// Each throws Error(kInvalidInput) "WHERE.KEY: …" for a wrong type; a missing or null field gives `fallback`.
bool bool_field(const Json& object, const char* key, bool fallback, std::string_view where);
int64_t int_field(const Json& object, const char* key, int64_t fallback, std::string_view where);
std::string string_field(const Json& object, const char* key, std::string_view fallback,
                         std::string_view where);
// Required fields.
const std::string& required_string(const Json& object, const char* key, std::string_view where);
const Json& required_array(const Json& object, const char* key, std::string_view where);
// object["type"], after checking that it is an object.
const std::string& type_field(const Json& object, std::string_view where);

// {"String": s} or {"Regex": s}: the text and whether it is a regular expression. A bare string is a literal.
struct PatternText {
  std::string text;
  bool is_regex = false;
};
PatternText pattern_field(const Json& object, const char* key, std::string_view where);

}  // namespace qiao::tokenization
