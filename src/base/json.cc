#include "base/json.h"

#include <string>
#include <vector>

#include "base/error.h"
#include "base/quote.h"

namespace qiao {
namespace {

// Follows a parse: keys and indices of the values that are open.
class PathSax {
 public:
  std::string path;  // where the parse failed

  bool key(std::string& name) {
    levels_.back().name = name;
    return true;
  }
  bool start_object(size_t) {
    levels_.push_back({});
    return true;
  }
  bool start_array(size_t) {
    levels_.push_back({.array = true});
    return true;
  }
  bool end_object() { return leave(); }
  bool end_array() { return leave(); }
  bool null() { return value(); }
  bool boolean(bool) { return value(); }
  bool number_integer(int64_t) { return value(); }
  bool number_unsigned(uint64_t) { return value(); }
  bool number_float(double, const std::string&) { return value(); }
  bool string(std::string&) { return value(); }
  bool binary(std::vector<uint8_t>&) { return value(); }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception&) {
    for (const Level& level : levels_) {
      if (level.array) {
        path += fmt::format("[{}]", level.index);
      } else if (!level.name.empty()) {
        path += path.empty() ? level.name : "." + level.name;
      }
    }
    return false;
  }

 private:
  struct Level {
    bool array = false;
    size_t index = 0;
    std::string name;
  };
  bool leave() {
    levels_.pop_back();
    return value();
  }
  bool value() {
    if (levels_.empty()) return true;
    if (levels_.back().array) {
      ++levels_.back().index;
    } else {
      levels_.back().name.clear();
    }
    return true;
  }
  std::vector<Level> levels_;
};

}  // namespace

std::string json_error_path(std::string_view text) {
  PathSax sax;
  Json::sax_parse(text.begin(), text.end(), &sax);
  return sax.path.size() > 200 ? std::string() : sax.path;
}

Json parse_json(std::string_view text, std::string_view where, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    throw_error(ErrorKind::kTooLarge, "{}: JSON of {} bytes is over the limit of {}", where, text.size(),
                limits.max_bytes);
  }
  // Depth first, in one pass over the bytes: the parser's callback would slow every value down.
  size_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > limits.max_depth) {
        throw_error(ErrorKind::kInvalidInput, "{}: byte {}: JSON nested deeper than {}", where, i,
                    limits.max_depth);
      }
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 9: syntax error while … last read:
    // '…'", where what was last read may be all of a long text.
    constexpr size_t kShownBytes = 240;
    std::string_view what = e.what();
    if (const size_t at = what.find("] "); at != std::string_view::npos) what.remove_prefix(at + 2);
    const auto* syntax = dynamic_cast<const nlohmann::json::parse_error*>(&e);
    throw_error(ErrorKind::kInvalidInput, "{}: {}not valid JSON: {}", where,
                syntax == nullptr ? std::string() : fmt::format("byte {}: ", syntax->byte),
                printable(what, kShownBytes));
  }
}

std::string dump_json(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace qiao
