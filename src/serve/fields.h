// Reads a request's JSON object field by field: type and range are checked, what nobody asked for is an
// error.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "serve/api_error.h"

namespace qiao::serve {

// A JSON null counts as absent everywhere, as in OpenAI's API. Errors are ApiError 400 naming the field.
class Fields {
 public:
  // `path` precedes field names in messages ("messages[2].").
  explicit Fields(const Json& object, std::string path = {});

  const Json* find(std::string_view name);  // nullptr where absent; counts as read
  bool flag(std::string_view name, bool fallback);
  std::optional<int64_t> integer(std::string_view name, int64_t least, int64_t most);
  std::optional<double> number(std::string_view name, double least, double most);
  std::optional<std::string> text(std::string_view name);
  std::string required_text(std::string_view name);
  // A string, or a list of strings.
  std::vector<std::string> texts(std::string_view name, size_t most);

  // Fields of the API that change nothing here (user, metadata…) and those that are not supported yet: the
  // latter are an error unless absent, null or false.
  void ignore(std::initializer_list<std::string_view> names);
  void refuse(std::initializer_list<std::string_view> names, std::string_view why);
  // Every field that was not read above is an error.
  void finish() const;

  std::string full_name(std::string_view name) const { return path_ + std::string(name); }

 private:
  const Json& object_;
  std::string path_;
  std::set<std::string, std::less<>> read_;
};

}  // namespace qiao::serve
