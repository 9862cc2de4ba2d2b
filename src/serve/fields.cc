#include "serve/fields.h"

#include <cmath>

namespace qiao::serve {

Fields::Fields(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (!object.is_object()) {
    const std::string where = path_.empty() ? "body" : path_.substr(0, path_.size() - 1);
    throw_bad_field(where, "expected a JSON object, got {}", object.type_name());
  }
}

const Json* Fields::find(std::string_view name) {
  read_.emplace(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool Fields::flag(std::string_view name, bool fallback) {
  const Json* value = find(name);
  if (value == nullptr) return fallback;
  if (!value->is_boolean())
    throw_bad_field(full_name(name), "expected true or false, got {}", value->type_name());
  return value->get<bool>();
}

std::optional<int64_t> Fields::integer(std::string_view name, int64_t least, int64_t most) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  const bool whole =
      value->is_number_integer() || (value->is_number_float() && std::abs(value->get<double>()) < 0x1p53 &&
                                     std::trunc(value->get<double>()) == value->get<double>());
  if (!whole) {
    throw_bad_field(full_name(name), "expected an integer, got {}",
                    value->is_number() ? dump_json(*value) : value->type_name());
  }
  const bool over = value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  const int64_t number =
      value->is_number_float() ? static_cast<int64_t>(value->get<double>()) : value->get<int64_t>();
  if (over || number < least || number > most) {
    throw_bad_field(full_name(name), "{} is out of range; allowed: {} to {}", dump_json(*value), least, most);
  }
  return number;
}

std::optional<double> Fields::number(std::string_view name, double least, double most) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) throw_bad_field(full_name(name), "expected a number, got {}", value->type_name());
  const double number = value->get<double>();
  if (!(number >= least && number <= most)) {
    throw_bad_field(full_name(name), "{} is out of range; allowed: {} to {}", dump_json(*value), least, most);
  }
  return number;
}

std::optional<std::string> Fields::text(std::string_view name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) throw_bad_field(full_name(name), "expected a string, got {}", value->type_name());
  return value->get<std::string>();
}

std::string Fields::required_text(std::string_view name) {
  std::optional<std::string> value = text(name);
  if (!value) throw_bad_field(full_name(name), "is required");
  return std::move(*value);
}

std::vector<std::string> Fields::texts(std::string_view name, size_t most) {
  const Json* value = find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array())
    throw_bad_field(full_name(name), "expected a string or a list of strings, got {}", value->type_name());
  if (value->size() > most)
    throw_bad_field(full_name(name), "has {} entries; at most {} are allowed", value->size(), most);
  std::vector<std::string> list;
  for (size_t i = 0; i < value->size(); ++i) {
    const Json& entry = (*value)[i];
    if (!entry.is_string()) {
      throw_bad_field(fmt::format("{}[{}]", full_name(name), i), "expected a string, got {}",
                      entry.type_name());
    }
    list.push_back(entry.get<std::string>());
  }
  return list;
}

void Fields::ignore(std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) read_.emplace(name);
}

void Fields::refuse(std::initializer_list<std::string_view> names, std::string_view why) {
  for (const std::string_view name : names) {
    const Json* value = find(name);
    if (value == nullptr || *value == Json(false)) continue;
    throw ApiError(400, fmt::format("{}: {}", full_name(name), why), full_name(name),
                   "unsupported_parameter");
  }
}

void Fields::finish() const {
  for (const auto& [name, value] : object_.items()) {
    if (read_.contains(name)) continue;
    const std::string shown = full_name(name.size() > 100 ? name.substr(0, 100) + "…" : name);
    throw ApiError(400, fmt::format("{}: unknown field", shown), shown, "unknown_parameter");
  }
}

}  // namespace qiao::serve
