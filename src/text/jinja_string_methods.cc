// The methods of str.
#include <algorithm>

#include "text/jinja_builtins.h"
#include "text/jinja_format.h"
#include "text/jinja_operators.h"
#include "text/jinja_text.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

// Parameters that cannot be named.

Value like(const Value& self, std::string text) { return Value(std::move(text), self.string().markup); }

Value text_list(const Value& self, const std::vector<std::string_view>& parts) {
  step(parts.size());
  std::vector<Value> items;
  items.reserve(parts.size());
  for (const std::string_view part : parts) items.push_back(like(self, std::string(part)));
  return Value::list(std::move(items));
}

// text[start:end] by code points, as find() and its kin take it; nothing where start lies past the end.
struct Span {
  size_t begin = 0;
  size_t end = 0;
  bool valid = false;
};

Span span_of(const String& text, const Value* start_value, const Value* end_value) {
  const auto bound = [&](const Value* value, int64_t fallback) {
    if (!value || value->is_none()) return fallback;
    const int64_t at = require_integer(*value, "slice indices");
    return at < 0 ? std::max<int64_t>(at + text.length, 0) : at;
  };
  const int64_t start = bound(start_value, 0);
  const int64_t end = std::min(bound(end_value, text.length), text.length);
  Span span;
  if (start > text.length || start > end) return span;
  span.valid = true;
  span.begin =
      text.is_ascii() ? static_cast<size_t>(start) : utf8_offset(text.text, static_cast<size_t>(start));
  span.end = text.is_ascii() ? static_cast<size_t>(end)
                             : utf8_offset(text.text, static_cast<size_t>(end - start), span.begin);
  return span;
}

int64_t find_in(const Value& self, Arguments& arguments, const char* name, bool from_right) {
  const Bound bound(name, arguments, {kPositional, kPositional, kPositional}, 1);
  const std::string_view part = bound.text(0, {});
  step_bytes(self.text().size());
  const Span span = span_of(self.string(), bound[1], bound[2]);
  if (!span.valid) return -1;
  const std::string_view window = self.text().substr(span.begin, span.end - span.begin);
  const size_t at = from_right ? window.rfind(part) : window.find(part);
  if (at == std::string_view::npos) return -1;
  return static_cast<int64_t>(utf8_length(self.text().substr(0, span.begin + at)));
}

Value find_method(Interpreter&, const Value& self, Arguments& arguments) {
  return Value(find_in(self, arguments, "find", false));
}
Value rfind_method(Interpreter&, const Value& self, Arguments& arguments) {
  return Value(find_in(self, arguments, "rfind", true));
}
Value index_method(Interpreter&, const Value& self, Arguments& arguments) {
  const int64_t at = find_in(self, arguments, "index", false);
  if (at < 0) fail("substring not found");
  return Value(at);
}
Value rindex_method(Interpreter&, const Value& self, Arguments& arguments) {
  const int64_t at = find_in(self, arguments, "rindex", true);
  if (at < 0) fail("substring not found");
  return Value(at);
}

Value count_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("count", arguments, {kPositional, kPositional, kPositional}, 1);
  const std::string_view part = bound.text(0, {});
  step_bytes(self.text().size());
  const Span span = span_of(self.string(), bound[1], bound[2]);
  if (!span.valid) return Value(int64_t{0});
  const std::string_view window = self.text().substr(span.begin, span.end - span.begin);
  if (part.empty()) return Value(static_cast<int64_t>(utf8_length(window)) + 1);
  int64_t count = 0;
  for (size_t at = window.find(part); at != std::string_view::npos; at = window.find(part, at + part.size()))
    ++count;
  return Value(count);
}

bool has_affix(const Value& self, Arguments& arguments, const char* name, bool at_start) {
  const Bound bound(name, arguments, {kPositional, kPositional, kPositional}, 1);
  const Span span = span_of(self.string(), bound[1], bound[2]);
  const auto matches = [&](const Value& affix) {
    require_defined(affix);
    if (!affix.is_string()) {
      fail("{} first arg must be str or a tuple of str, not {}", name, type_name(affix));
    }
    if (!span.valid) return false;
    const std::string_view window = self.text().substr(span.begin, span.end - span.begin);
    const std::string_view text = affix.text();
    if (text.size() > window.size()) return false;
    return (at_start ? window.substr(0, text.size()) : window.substr(window.size() - text.size())) == text;
  };
  if (!bound[0]->is(Kind::kTuple)) return matches(*bound[0]);
  const std::vector<Value>& all = bound[0]->items();
  return std::any_of(all.begin(), all.end(), matches);
}

Value startswith_method(Interpreter&, const Value& self, Arguments& arguments) {
  return Value(has_affix(self, arguments, "startswith", true));
}
Value endswith_method(Interpreter&, const Value& self, Arguments& arguments) {
  return Value(has_affix(self, arguments, "endswith", false));
}

template <bool kLeft, bool kRight>
Value strip_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("strip", arguments, {kPositional});
  step_bytes(self.text().size());
  if (!bound[0] || bound[0]->is_none()) return like(self, std::string(strip(self.text(), kLeft, kRight)));
  const std::string_view characters = bound.text(0, {});
  return like(self, std::string(strip(self.text(), kLeft, kRight, &characters)));
}

template <bool kFromRight>
Value split_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("split", arguments, {"sep", "maxsplit"});
  step_bytes(self.text().size());
  const int64_t most = bound.integer(1, -1);
  const bool by_space = !bound[0] || bound[0]->is_none();
  if (by_space) return text_list(self, split_spaces(self.text(), most, kFromRight));
  const std::string_view separator = bound.text(0, {});
  if (separator.empty()) fail("empty separator");
  return text_list(self, split_text(self.text(), separator, most, kFromRight));
}

Value splitlines_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("splitlines", arguments, {"keepends"});
  step_bytes(self.text().size());
  return text_list(self, split_lines(self.text(), bound.truth(0, false)));
}

template <bool kFromRight>
Value partition_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("partition", arguments, {kPositional}, 1);
  const std::string_view separator = bound.text(0, {});
  if (separator.empty()) fail("empty separator");
  const std::string_view text = self.text();
  step_bytes(text.size());
  const size_t at = kFromRight ? text.rfind(separator) : text.find(separator);
  std::string_view parts[3] = {text, {}, {}};
  if (at != std::string_view::npos) {
    parts[0] = text.substr(0, at);
    parts[1] = separator;
    parts[2] = text.substr(at + separator.size());
  } else if (kFromRight) {
    std::swap(parts[0], parts[2]);
  }
  return Value::tuple({like(self, std::string(parts[0])), like(self, std::string(parts[1])),
                       like(self, std::string(parts[2]))});
}

Value replace_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("replace", arguments, {kPositional, kPositional, kPositional}, 2);
  const bool markup = self.string().markup;
  const std::string_view from = bound.text(0, {});
  const std::string_view plain = bound.text(1, {});
  const std::string to = markup ? escape_html(*bound[1]) : std::string(plain);
  return like(self, replace_text(self.text(), markup ? escape_html(*bound[0]) : std::string(from), to,
                                 bound.integer(2, -1)));
}

Value join_method(Interpreter& interpreter, const Value& self, Arguments& arguments) {
  const Bound bound("join", arguments, {kPositional}, 1);
  const std::vector<Value> items = to_vector(interpreter, *bound[0]);
  const bool markup = self.string().markup;
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!markup && !items[i].is_string()) {
      require_defined(items[i]);
      fail("sequence item {}: expected str instance, {} found", i, type_name(items[i]));
    }
    if (i > 0) out += self.text();
    if (markup) {
      out += escape_html(items[i]);
    } else {
      append_text(out, items[i]);
    }
    check_string_size(out.size());
  }
  return like(self, std::move(out));
}

template <char kAlign>
Value pad_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("center", arguments, {kPositional, kPositional}, 1);
  const std::string_view fill = bound.text(1, " ");
  if (utf8_length(fill) != 1) fail("The fill character must be exactly one character long");
  size_t at = 0;
  const char32_t c = utf8_next(fill, at);
  const int64_t width = std::max<int64_t>(bound.integer(0, 0), 0);
  if (kAlign == '^') return like(self, center_text(self.text(), width, c));
  return like(self, pad(std::string(self.text()), c, kAlign, static_cast<size_t>(width)));
}

Value zfill_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("zfill", arguments, {kPositional}, 1);
  const std::string_view text = self.text();
  const size_t sign = !text.empty() && (text[0] == '+' || text[0] == '-') ? 1 : 0;
  const auto width = static_cast<size_t>(std::max<int64_t>(bound.integer(0, 0), 0));
  return like(self, std::string(text.substr(0, sign)) +
                        pad(std::string(text.substr(sign)), U'0', '>', width - std::min(width, sign)));
}

Value removeprefix_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("removeprefix", arguments, {kPositional}, 1);
  const std::string_view affix = bound.text(0, {});
  const std::string_view text = self.text();
  return like(self, std::string(text.substr(0, affix.size()) == affix ? text.substr(affix.size()) : text));
}

Value removesuffix_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("removesuffix", arguments, {kPositional}, 1);
  const std::string_view affix = bound.text(0, {});
  const std::string_view text = self.text();
  const bool ends = text.size() >= affix.size() && text.substr(text.size() - affix.size()) == affix;
  return like(self, std::string(ends ? text.substr(0, text.size() - affix.size()) : text));
}

Value expandtabs_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("expandtabs", arguments, {"tabsize"});
  const int64_t size = std::clamp<int64_t>(bound.integer(0, 8), 0, 1 << 20);
  std::string out;
  int64_t column = 0;
  const std::string_view text = self.text();
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = utf8_next(text, at);
    if (c == '\t') {
      const int64_t spaces = size > 0 ? size - column % size : 0;
      out.append(static_cast<size_t>(spaces), ' ');
      column += spaces;
    } else {
      out.append(text.substr(begin, at - begin));
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
    check_string_size(out.size());
  }
  return like(self, std::move(out));
}

template <std::string (*kConvert)(std::string_view)>
Value convert_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("the method", arguments, {});
  step_bytes(self.text().size());
  return like(self, kConvert(self.text()));
}

// True where the text is not empty and every character is one.
template <bool (*kIs)(char32_t)>
Value every_method(Interpreter&, const Value& self, Arguments& arguments) {
  const Bound bound("the method", arguments, {});
  return Value(!self.text().empty() && every_character(self.text(), kIs));
}

bool is_alphanumeric(char32_t c) { return is_alpha(c) || is_numeric(c); }

Value isascii_method(Interpreter&, const Value& self, Arguments&) { return Value(self.string().is_ascii()); }
Value isprintable_method(Interpreter&, const Value& self, Arguments&) {
  return Value(every_character(self.text(), is_printable));
}
Value islower_method(Interpreter&, const Value& self, Arguments&) { return Value(is_all_lower(self.text())); }
Value isupper_method(Interpreter&, const Value& self, Arguments&) { return Value(is_all_upper(self.text())); }
Value istitle_method(Interpreter&, const Value& self, Arguments&) { return Value(is_all_title(self.text())); }
Value isidentifier_method(Interpreter&, const Value& self, Arguments&) {
  size_t at = 0;
  return Value(!self.text().empty() && is_identifier_start(utf8_next(self.text(), at)) &&
               every_character(self.text(), is_identifier_part));
}

Value format_method(Interpreter& interpreter, const Value& self, Arguments& arguments) {
  if (!self.string().markup) return Value(format_braces(interpreter, self.text(), arguments));
  throw_error(ErrorKind::kUnsupported, "the method Markup.format");
}

Value format_map_method(Interpreter& interpreter, const Value& self, Arguments& arguments) {
  const Bound bound("format_map", arguments, {kPositional}, 1);
  if (!bound[0]->is(Kind::kDict)) fail("format_map() needs a mapping");
  Arguments named;
  for (const auto& [key, value] : bound[0]->dict().entries()) {
    if (key.is_string()) named.named.emplace_back(key.text(), value);
  }
  return Value(format_braces(interpreter, self.text(), named));
}

// By name, for the search.
constexpr Method kMethods[] = {
    {"capitalize", convert_method<to_capitalized>},
    {"casefold", convert_method<to_casefold>},
    {"center", pad_method<'^'>},
    {"count", count_method},
    {"encode", nullptr},
    {"endswith", endswith_method},
    {"expandtabs", expandtabs_method},
    {"find", find_method},
    {"format", format_method},
    {"format_map", format_map_method},
    {"index", index_method},
    {"isalnum", every_method<is_alphanumeric>},
    {"isalpha", every_method<is_alpha>},
    {"isascii", isascii_method},
    {"isdecimal", every_method<is_decimal>},
    {"isdigit", every_method<is_digit>},
    {"isidentifier", isidentifier_method},
    {"islower", islower_method},
    {"isnumeric", every_method<is_numeric>},
    {"isprintable", isprintable_method},
    {"isspace", every_method<is_space>},
    {"istitle", istitle_method},
    {"isupper", isupper_method},
    {"join", join_method},
    {"ljust", pad_method<'<'>},
    {"lower", convert_method<to_lower>},
    {"lstrip", strip_method<true, false>},
    {"maketrans", nullptr},
    {"partition", partition_method<false>},
    {"removeprefix", removeprefix_method},
    {"removesuffix", removesuffix_method},
    {"replace", replace_method},
    {"rfind", rfind_method},
    {"rindex", rindex_method},
    {"rjust", pad_method<'>'>},
    {"rpartition", partition_method<true>},
    {"rsplit", split_method<true>},
    {"rstrip", strip_method<false, true>},
    {"split", split_method<false>},
    {"splitlines", splitlines_method},
    {"startswith", startswith_method},
    {"strip", strip_method<true, true>},
    {"swapcase", convert_method<to_swapped_case>},
    {"title", convert_method<to_title>},
    {"translate", nullptr},
    {"upper", convert_method<to_upper>},
    {"zfill", zfill_method},
};

}  // namespace

const Method* find_string_method(std::string_view name) {
  const auto* found =
      std::lower_bound(std::begin(kMethods), std::end(kMethods), name,
                       [](const Method& method, std::string_view key) { return method.name < key; });
  return found != std::end(kMethods) && found->name == name ? found : nullptr;
}

}  // namespace qiao::jinja
