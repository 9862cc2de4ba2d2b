#include "text/jinja_json.h"

#include <algorithm>
#include <cmath>

#include "text/jinja_operators.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

Value convert(const Json& json, int depth) {
  if (depth > max_value_depth()) {
    throw_error(ErrorKind::kTooLarge, "the variables are nested deeper than {}", max_value_depth());
  }
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value(json.get<bool>());
    case Json::value_t::number_integer:
      return Value(json.get<int64_t>());
    case Json::value_t::number_unsigned: {
      const auto number = json.get<uint64_t>();
      if (number > static_cast<uint64_t>(INT64_MAX)) return Value::big_int(fmt::format("{}", number));
      return Value(static_cast<int64_t>(number));
    }
    case Json::value_t::number_float:
      return Value(json.get<double>());
    case Json::value_t::string: {
      const std::string& text = json.get_ref<const std::string&>();
      return Value(find_broken_utf8(text) == std::string::npos ? text : repair_utf8(text));
    }
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const Json& each : json) items.push_back(convert(each, depth + 1));
      return Value::list(std::move(items));
    }
    case Json::value_t::object: {
      const auto dict = make<Dict>();
      for (const auto& [key, value] : json.items()) {
        dict->set(Value(find_broken_utf8(key) == std::string::npos ? key : repair_utf8(key)),
                  convert(value, depth + 1));
      }
      return Value(dict);
    }
    default:
      return Value();
  }
}

class Dumper {
 public:
  explicit Dumper(const JsonStyle& style) : style_(style) {}

  void dump(const Value& value) {
    step();
    switch (value.kind()) {
      case Kind::kNone:
        out += "null";
        break;
      case Kind::kBool:
        out += value.boolean() ? "true" : "false";
        break;
      case Kind::kInt:
      case Kind::kBigInt:
        append_repr(out, value);
        break;
      case Kind::kFloat:
        out += number(value.number());
        break;
      case Kind::kString:
        string(value.text());
        break;
      case Kind::kList:
      case Kind::kTuple:
        list(value.items());
        break;
      case Kind::kDict:
        dict(value.dict());
        break;
      default:
        fail("Object of type {} is not JSON serializable", type_name(value));
    }
    check_string_size(out.size());
  }

  std::string out;

 private:
  static std::string number(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    return float_repr(value);
  }

  void new_line() {
    if (!style_.indented) return;
    out += '\n';
    for (int i = 0; i < level_; ++i) out += style_.indent;
  }

  void separate(bool& first) {
    if (!first) out += style_.item_separator;
    first = false;
    new_line();
  }

  void list(const std::vector<Value>& items) {
    out += '[';
    ++level_;
    bool first = true;
    for (const Value& each : items) {
      separate(first);
      dump(each);
    }
    --level_;
    if (!first) new_line();
    out += ']';
  }

  void dict(const Dict& dict) {
    std::vector<const Dict::Entry*> entries;
    for (const Dict::Entry& entry : dict.entries()) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto* a, const auto* b) { return less(a->first, b->first); });
    }
    out += '{';
    ++level_;
    bool first = true;
    for (const auto* entry : entries) {
      separate(first);
      string(key(entry->first));
      out += style_.key_separator;
      dump(entry->second);
    }
    --level_;
    if (!first) new_line();
    out += '}';
  }

  static std::string key(const Value& value) {
    switch (value.kind()) {
      case Kind::kString:
        return std::string(value.text());
      case Kind::kNone:
        return "null";
      case Kind::kBool:
        return value.boolean() ? "true" : "false";
      case Kind::kInt:
      case Kind::kBigInt:
        return to_repr(value);
      case Kind::kFloat:
        return number(value.number());
      default:
        fail("keys must be str, int, float, bool or None, not {}", type_name(value));
    }
  }

  void string(std::string_view text) {
    step_bytes(text.size());
    out += '"';
    for (size_t at = 0; at < text.size();) {
      const size_t begin = at;
      const char32_t c = utf8_next(text, at);
      static constexpr std::string_view kEscaped = "\"\\\n\r\t\f\b";
      static constexpr std::string_view kNames = "\"\\nrtfb";
      if (const size_t known = c < 0x80 ? kEscaped.find(static_cast<char>(c)) : std::string_view::npos;
          known != std::string_view::npos) {
        out += '\\';
        out += kNames[known];
      } else if (c < 0x20 || (style_.ascii && c >= 0x7F)) {
        escape(c);
      } else {
        out.append(text.substr(begin, at - begin));
      }
    }
    out += '"';
  }

  void escape(char32_t c) {
    if (c >= 0x10000) {
      const char32_t rest = c - 0x10000;
      escape(0xD800 + (rest >> 10));
      escape(0xDC00 + (rest & 0x3FF));
      return;
    }
    fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<uint32_t>(c));
  }

  const JsonStyle& style_;
  int level_ = 0;
};

}  // namespace

Value from_json(const Json& json) { return convert(json, 1); }

std::string dump(const Value& value, const JsonStyle& style) {
  Dumper dumper(style);
  dumper.dump(value);
  return std::move(dumper.out);
}

}  // namespace qiao::jinja
