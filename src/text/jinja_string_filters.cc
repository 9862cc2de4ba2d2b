// Filters that make text.
#include <algorithm>

#include "text/jinja_filters.h"
#include "text/jinja_format.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_json.h"
#include "text/jinja_operators.h"
#include "text/jinja_text.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

template <std::string (*kConvert)(std::string_view)>
Value convert_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("the filter", arguments, {});
  const Value text = soft_text(value);
  step_bytes(text.text().size());
  return Value(kConvert(text.text()), text.string().markup);
}

// Words as |title sees them: apart by spaces, hyphens and opening brackets alone.
std::string title_words(std::string_view text) {
  std::string out;
  size_t begin = 0;
  const auto flush = [&](size_t end) {
    if (end == begin) return;
    const size_t rest = utf8_offset(text, 1, begin);
    out += to_upper(text.substr(begin, rest - begin)) + to_lower(text.substr(rest, end - rest));
  };
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    const char32_t c = utf8_next(text, at);
    if (!is_space(c) &&
        (c >= 0x80 || std::string_view("-({[<").find(static_cast<char>(c)) == std::string_view::npos)) {
      continue;
    }
    flush(start);
    out.append(text.substr(start, at - start));
    begin = at;
  }
  flush(text.size());
  return out;
}

Value string_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("string", arguments, {});
  return soft_text(value);
}

Value safe_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("safe", arguments, {});
  return Value(to_text(value), true);
}

Value escape_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("escape", arguments, {});
  return Value(escape_html(value), true);
}

Value forceescape_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("forceescape", arguments, {});
  return Value(escape_html(Value(to_text(value))), true);
}

Value trim_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("trim", arguments, {"chars"});
  const Value text = soft_text(value);
  step_bytes(text.text().size());
  if (!bound[0] || bound[0]->is_none())
    return Value(std::string(strip(text.text(), true, true)), text.string().markup);
  const std::string_view characters = bound.text(0, {});
  return Value(std::string(strip(text.text(), true, true, &characters)), text.string().markup);
}

Value replace_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("replace", arguments, {"old", "new", "count"}, 2);
  const int64_t count = bound[2] && bound[2]->is_none() ? -1 : bound.integer(2, -1);
  return Value(replace_text(to_text(value), to_text(*bound[0]), to_text(*bound[1]), count));
}

Value format_filter(Interpreter&, const Value& value, Arguments& arguments) {
  if (!arguments.positional.empty() && !arguments.named.empty()) {
    fail("can't handle positional and keyword arguments at the same time");
  }
  Value values = Value::tuple(arguments.positional);
  if (!arguments.named.empty()) {
    const auto dict = make<Dict>();
    for (const auto& [key, each] : arguments.named) dict->set(Value(std::string_view(key)), each);
    values = Value(dict);
  }
  return modulo(soft_text(value), values);
}

Value center_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("center", arguments, {"width"});
  const Value text = soft_text(value);
  return Value(center_text(text.text(), bound.integer(0, 80), U' '), text.string().markup);
}

Value indent_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("indent", arguments, {"width", "first", "blank"});
  require_defined(value);
  if (!value.is_string()) fail("unsupported operand type(s) for +=: '{}' and 'str'", type_name(value));
  std::string indention;
  if (bound[0] && bound[0]->is_string()) {
    indention = bound[0]->text();
  } else {
    const auto width = static_cast<size_t>(std::max<int64_t>(bound.integer(0, 4), 0));
    check_string_size(width);
    indention.assign(width, ' ');
  }
  const bool blank = bound.truth(2, false);
  const std::string text = std::string(value.text()) + '\n';
  step_bytes(text.size());
  std::string out = bound.truth(1, false) ? indention : std::string();
  bool first = true;
  for (const std::string_view line : split_lines(text, false)) {
    if (!first) out += '\n';
    if (!first && (blank || !line.empty())) out += indention;
    first = false;
    out += line;
    check_string_size(out.size());
  }
  return Value(std::move(out), value.string().markup);
}

Value truncate_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("truncate", arguments, {"length", "killwords", "end", "leeway"});
  const int64_t length = bound.integer(0, 255);
  const std::string_view end = bound.text(2, "...");
  const auto end_length = static_cast<int64_t>(utf8_length(end));
  const int64_t leeway = bound[3] && bound[3]->is_none() ? 5 : bound.integer(3, 5);
  if (length < end_length) fail("expected length >= {}, got {}", end_length, length);
  if (leeway < 0) fail("expected leeway >= 0, got {}", leeway);
  if (require_length(value) - leeway <= length) return value;
  if (!value.is_string()) fail("truncate needs a string, not '{}'", type_name(value));
  const std::string_view text = value.text();
  std::string_view kept = text.substr(0, utf8_offset(text, static_cast<size_t>(length - end_length)));
  if (!bound.truth(1, false)) kept = kept.substr(0, kept.rfind(' '));
  return Value(std::string(kept) + std::string(end), value.string().markup);
}

std::string quote_url(const Value& value, bool query) {
  std::string out;
  for (const char c : to_text(value)) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       c == '_' || c == '.' || c == '-' || c == '~' || (c == '/' && !query);
    if (plain) {
      out += c;
    } else if (c == ' ' && query) {
      out += '+';
    } else {
      fmt::format_to(std::back_inserter(out), "%{:02X}", static_cast<unsigned char>(c));
    }
  }
  check_string_size(out.size());
  return out;
}

Value urlencode_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("urlencode", arguments, {});
  if (value.is_string() || !is_iterable(value)) return Value(quote_url(value, false));
  std::string out;
  const auto add_pair = [&](const Value& key, const Value& item) {
    if (!out.empty()) out += '&';
    out += quote_url(key, true) + '=' + quote_url(item, true);
    check_string_size(out.size());
  };
  if (value.is(Kind::kDict)) {
    for (const auto& [key, item] : value.dict().entries()) add_pair(key, item);
    return Value(std::move(out));
  }
  for (const Value& pair : to_vector(interpreter, value)) {
    const std::vector<Value> parts = to_vector(interpreter, pair);
    if (parts.size() != 2) fail("urlencode needs pairs");
    add_pair(parts[0], parts[1]);
  }
  return Value(std::move(out));
}

Value wordcount_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("wordcount", arguments, {});
  const Value text = soft_text(value);
  int64_t words = 0;
  bool inside = false;
  for (size_t at = 0; at < text.text().size();) {
    const char32_t c = utf8_next(text.text(), at);
    const bool word = c == '_' || is_alpha(c) || is_numeric(c);
    words += word && !inside;
    inside = word;
  }
  return Value(words);
}

Value wordwrap_filter(Interpreter&, const Value& value, Arguments& arguments) {
  const Bound bound("wordwrap", arguments, {"width", "break_long_words", "wrapstring", "break_on_hyphens"});
  require_defined(value);
  if (!value.is_string()) fail("'{}' object has no attribute 'splitlines'", type_name(value));
  const std::string_view joiner = bound[2] && bound[2]->is_none() ? "\n" : bound.text(2, "\n");
  const int64_t width = bound.integer(0, 79);
  if (width <= 0) fail("invalid width {} (must be > 0)", width);
  std::string out;
  bool first = true;
  for (const std::string_view line : split_lines(value.text(), false)) {
    step_bytes(line.size());
    const std::vector<std::string> wrapped =
        wrap_text(line, width, bound.truth(1, true), bound.truth(3, true));
    if (!first) out += joiner;
    first = false;
    for (size_t i = 0; i < wrapped.size(); ++i) {
      if (i > 0) out += joiner;
      out += wrapped[i];
      check_string_size(out.size());
    }
  }
  return Value(std::move(out), value.string().markup);
}

Value tojson_filter(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  const Bound bound("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii = bound.truth(0, false);
  style.sort_keys = bound.truth(3, false);
  if (bound[1] && !bound[1]->is_none()) {
    style.indented = true;
    style.item_separator = ",";
    if (bound[1]->is_string()) {
      style.indent = bound[1]->text();
    } else {
      const auto width = static_cast<size_t>(std::max<int64_t>(bound.integer(1, 0), 0));
      check_string_size(width);
      style.indent.assign(width, ' ');
    }
  }
  if (bound[2] && !bound[2]->is_none()) {
    const std::vector<Value> both = to_vector(interpreter, *bound[2]);
    if (both.size() != 2 || !both[0].is_string() || !both[1].is_string())
      fail("separators must be two strings");
    style.item_separator = both[0].text();
    style.key_separator = both[1].text();
  }
  return Value(dump(value, style));
}

template <const char* kName>
Value unsupported_filter(Interpreter&, const Value&, Arguments&) {
  throw_error(ErrorKind::kUnsupported, "the filter {} is not supported in chat templates", kName);
}

constexpr char kPprint[] = "pprint";
constexpr char kRandom[] = "random";
constexpr char kStriptags[] = "striptags";
constexpr char kUrlize[] = "urlize";
constexpr char kXmlattr[] = "xmlattr";

constexpr Filter kStringFilters[] = {
    {"capitalize", convert_filter<to_capitalized>},
    {"center", center_filter},
    {"e", escape_filter},
    {"escape", escape_filter},
    {"forceescape", forceescape_filter},
    {"format", format_filter},
    {"indent", indent_filter},
    {"lower", convert_filter<to_lower>},
    {"replace", replace_filter},
    {"safe", safe_filter},
    {"string", string_filter},
    {"title", convert_filter<title_words>},
    {"tojson", tojson_filter},
    {"trim", trim_filter},
    {"truncate", truncate_filter},
    {"upper", convert_filter<to_upper>},
    {"urlencode", urlencode_filter},
    {"wordcount", wordcount_filter},
    {"wordwrap", wordwrap_filter},
    {kPprint, unsupported_filter<kPprint>},
    {kRandom, unsupported_filter<kRandom>},
    {kStriptags, unsupported_filter<kStriptags>},
    {kUrlize, unsupported_filter<kUrlize>},
    {kXmlattr, unsupported_filter<kXmlattr>},
};

}  // namespace

Value soft_text(const Value& value) { return value.is_string() ? value : Value(to_text(value)); }

std::span<const Filter> string_filters() { return kStringFilters; }

}  // namespace qiao::jinja
