#include "text/json_fields.h"

#include "base/error.h"

namespace qiao::tokenization {
namespace {

const Json* find(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

[[noreturn]] void wrong(std::string_view where, const char* key, std::string_view expected) {
  throw_error(ErrorKind::kInvalidInput, "{}.{}: expected {}", where, key, expected);
}

}  // namespace

bool bool_field(const Json& object, const char* key, bool fallback, std::string_view where) {
  const Json* value = find(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) wrong(where, key, "true or false");
  return value->get<bool>();
}

int64_t int_field(const Json& object, const char* key, int64_t fallback, std::string_view where) {
  const Json* value = find(object, key);
  if (value == nullptr) return fallback;
  const bool fits =
      value->is_number_integer() &&
      !(value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
  if (!fits) wrong(where, key, "an integer");
  return value->get<int64_t>();
}

std::string string_field(const Json& object, const char* key, std::string_view fallback,
                         std::string_view where) {
  const Json* value = find(object, key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) wrong(where, key, "a string");
  return value->get<std::string>();
}

const std::string& required_string(const Json& object, const char* key, std::string_view where) {
  const Json* value = find(object, key);
  if (value == nullptr || !value->is_string()) wrong(where, key, "a string");
  return value->get_ref<const std::string&>();
}

const Json& required_array(const Json& object, const char* key, std::string_view where) {
  const Json* value = find(object, key);
  if (value == nullptr || !value->is_array()) wrong(where, key, "an array");
  return *value;
}

const std::string& type_field(const Json& object, std::string_view where) {
  if (!object.is_object()) throw_error(ErrorKind::kInvalidInput, "{}: expected an object", where);
  return required_string(object, "type", where);
}

PatternText pattern_field(const Json& object, const char* key, std::string_view where) {
  const Json* value = find(object, key);
  if (value != nullptr && value->is_string()) {
    const std::string& text = value->get_ref<const std::string&>();
    return {text, text.empty()};
  }
  if (value == nullptr || !value->is_object() || value->size() != 1 || !value->begin()->is_string() ||
      (value->begin().key() != "String" && value->begin().key() != "Regex")) {
    wrong(where, key, "{\"String\": …} or {\"Regex\": …}");
  }
  // An empty text matches between all characters, which the empty regular expression does.
  const std::string& text = value->begin()->get_ref<const std::string&>();
  return {text, text.empty() || value->begin().key() == "Regex"};
}

}  // namespace qiao::tokenization
