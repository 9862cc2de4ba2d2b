// "…" % values and "…".format(…): what stands around the numbers.
#include <charconv>
#include <cmath>
#include <optional>

#include "text/jinja_builtins.h"
#include "text/jinja_format.h"
#include "text/jinja_operators.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

class PercentFormatter {
 public:
  PercentFormatter(const Value& format, const Value& arguments)
      : format_(format.text()), markup_(format.string().markup), arguments_(arguments) {}

  std::string run() {
    while (at_ < format_.size()) {
      const size_t percent = format_.find('%', at_);
      out_.append(format_.substr(at_, percent - at_));
      if (percent == std::string_view::npos) break;
      at_ = percent + 1;
      conversion();
      check_string_size(out_.size());
    }
    const bool mapping =
        arguments_.is(Kind::kDict) || arguments_.is(Kind::kList) || arguments_.is(Kind::kRange);
    const size_t given = arguments_.is(Kind::kTuple) ? arguments_.items().size() : 1;
    if (used_ < given && !mapping) fail("not all arguments converted during string formatting");
    return std::move(out_);
  }

 private:
  char peek() const {
    if (at_ >= format_.size()) fail("incomplete format");
    return format_[at_];
  }

  Value next_argument() {
    if (arguments_.is(Kind::kTuple)) {
      if (used_ >= arguments_.items().size()) fail("not enough arguments for format string");
      return arguments_.items()[used_++];
    }
    if (used_++ > 0) fail("not enough arguments for format string");
    return arguments_;
  }

  int number_or_star() {
    if (peek() == '*') {
      ++at_;
      const int64_t value = require_integer(next_argument(), "* in a format");
      if (value < -INT32_MAX / 16 || value > INT32_MAX / 16) fail("width too big");
      return static_cast<int>(value);
    }
    int64_t value = 0;
    while (peek() >= '0' && peek() <= '9') {
      value = value * 10 + (format_[at_++] - '0');
      if (value > INT32_MAX / 16) fail("width too big");
    }
    return static_cast<int>(value);
  }

  void conversion() {
    std::optional<Value> keyed;
    if (peek() == '(') keyed = keyed_argument();
    bool left = false;
    bool zero = false;
    NumberStyle style;
    for (bool more = true; more;) {
      switch (peek()) {
        case '-':
          left = true;
          break;
        case '0':
          zero = true;
          break;
        case '+':
          style.sign = '+';
          break;
        case ' ':
          if (style.sign != '+') style.sign = ' ';
          break;
        case '#':
          style.alternate = true;
          break;
        default:
          more = false;
          continue;
      }
      ++at_;
    }
    int width = number_or_star();
    if (width < 0) {
      left = true;
      width = -width;
    }
    if (peek() == '.') {
      ++at_;
      style.precision = std::max(number_or_star(), 0);
    }
    check_string_size(static_cast<size_t>(width));
    check_string_size(static_cast<size_t>(std::max(style.precision, 0)));
    if (peek() == 'h' || peek() == 'l' || peek() == 'L') ++at_;
    const char type = peek();
    ++at_;
    if (type == '%') {
      out_ += '%';
      return;
    }
    const Value value = keyed ? *keyed : next_argument();
    const NumberText text = convert(value, type, style);
    const bool numeric = std::string_view("srac").find(type) == std::string_view::npos;
    const auto field = static_cast<size_t>(width);
    if (numeric && zero && !left) {
      out_ += text.prefix;
      out_ += pad(text.digits, U'0', '>', field - std::min(field, text.prefix.size()));
    } else {
      out_ += pad(text.prefix + text.digits, U' ', left ? '<' : '>', field);
    }
  }

  Value keyed_argument() {
    if (!arguments_.is(Kind::kDict)) fail("format requires a mapping");
    size_t end = at_ + 1;
    for (int depth = 1; depth > 0; ++end) {
      if (end >= format_.size()) fail("incomplete format key");
      depth += format_[end] == '(' ? 1 : format_[end] == ')' ? -1 : 0;
    }
    const std::string_view key = format_.substr(at_ + 1, end - at_ - 2);
    at_ = end;
    const Value* found = arguments_.dict().find(key);
    if (!found) fail("{}", quoted(key));
    return *found;
  }

  NumberText convert(const Value& value, char type, NumberStyle style) {
    switch (type) {
      case 's':
      case 'r':
      case 'a': {
        std::string text = type != 's' ? to_repr(value) : markup_ ? escape_html(value) : to_text(value);
        if (style.precision >= 0) text.resize(utf8_offset(text, static_cast<size_t>(style.precision)));
        return {{}, std::move(text)};
      }
      case 'c':
        return {{}, character(value)};
      case 'd':
      case 'i':
      case 'u':
      case 'o':
      case 'x':
      case 'X': {
        const bool decimal = type == 'd' || type == 'i' || type == 'u';
        style.type = decimal ? 'd' : type;
        NumberText text = format_integer(whole(value, type, decimal), style);
        if (style.precision > 0) {
          text.digits = pad(std::move(text.digits), U'0', '>', static_cast<size_t>(style.precision));
        }
        return text;
      }
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G':
        require_defined(value);
        if (!value.is_number()) fail("must be real number, not {}", type_name(value));
        style.type = type;
        return format_float(value.number(), style);
      default:
        fail("unsupported format character '{}' at index {}", type, at_ - 1);
    }
  }

  static int64_t whole(const Value& value, char type, bool decimal) {
    require_defined(value);
    if (value.is(Kind::kBigInt)) fail_overflow();
    if (decimal && value.is(Kind::kFloat)) {
      if (!std::isfinite(value.number())) fail("cannot convert float to integer");
      if (std::fabs(value.number()) >= 0x1p63) fail_overflow();
      return static_cast<int64_t>(value.number());
    }
    if (!value.is_integral()) fail("%{} format: a number is required, not {}", type, type_name(value));
    return value.integer();
  }

  static std::string character(const Value& value) {
    if (value.is_string() && value.string().length == 1) return std::string(value.text());
    if (!value.is_integral()) fail("%c requires int or char");
    const int64_t code = value.integer();
    if (code < 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      fail("%c arg not in range(0x110000)");
    std::string out;
    append_utf8(out, static_cast<char32_t>(code));
    return out;
  }

  const std::string_view format_;
  const bool markup_;
  const Value arguments_;
  size_t at_ = 0;
  size_t used_ = 0;
  std::string out_;
};

class BraceFormatter {
 public:
  BraceFormatter(Interpreter& interpreter, const Arguments& arguments)
      : interpreter_(interpreter), arguments_(arguments) {}

  std::string run(std::string_view format, int depth) {
    if (depth < 0) fail("Max string recursion exceeded");
    std::string out;
    for (size_t at = 0; at < format.size();) {
      const char c = format[at];
      if (c != '{' && c != '}') {
        out += c;
        ++at;
      } else if (at + 1 < format.size() && format[at + 1] == c) {
        out += c;
        at += 2;
      } else if (c == '}') {
        fail("Single '}}' encountered in format string");
      } else {
        field(format, at, depth, out);
      }
      check_string_size(out.size());
    }
    return out;
  }

 private:
  // From the "{" at `at` past its "}".
  void field(std::string_view format, size_t& at, int depth, std::string& out) {
    size_t end = ++at;
    int open = 1;
    bool in_brackets = false;
    for (; end < format.size(); ++end) {
      const char c = format[end];
      if (c == '[') in_brackets = true;
      if (c == ']') in_brackets = false;
      if (in_brackets) continue;
      open += c == '{' ? 1 : c == '}' ? -1 : 0;
      if (open == 0) break;
    }
    if (end >= format.size()) fail("expected '}}' before end of string");
    const std::string_view all = format.substr(at, end - at);
    at = end + 1;
    size_t name_end = 0;
    for (bool brackets = false; name_end < all.size(); ++name_end) {
      if (all[name_end] == '[') brackets = true;
      if (all[name_end] == ']') brackets = false;
      if (!brackets && (all[name_end] == '!' || all[name_end] == ':')) break;
    }
    std::string_view rest = all.substr(name_end);
    char conversion = '\0';
    if (!rest.empty() && rest[0] == '!') {
      if (rest.size() < 2) fail("unmatched '{{' in format spec");
      conversion = rest[1];
      rest.remove_prefix(2);
      if (!rest.empty() && rest[0] != ':') fail("expected ':' after conversion specifier");
    }
    if (!rest.empty()) rest.remove_prefix(1);
    Value value = find(all.substr(0, name_end));
    if (conversion == 's') {
      value = Value(to_text(value));
    } else if (conversion == 'r' || conversion == 'a') {
      value = Value(to_repr(value));
    } else if (conversion != '\0') {
      fail("Unknown conversion specifier {}", conversion);
    }
    out += format_value(value, run(rest, depth - 1));
  }

  Value find(std::string_view field) {
    const size_t end = field.find_first_of(".[");
    const std::string_view first = field.substr(0, end);
    std::string_view rest = end == std::string_view::npos ? std::string_view() : field.substr(end);
    Value value = argument(first);
    while (!rest.empty()) {
      if (rest[0] == '.') {
        const size_t stop = rest.find_first_of(".[", 1);
        const std::string_view name = rest.substr(1, stop == std::string_view::npos ? stop : stop - 1);
        if (name.empty()) fail("Empty attribute in format string");
        value = get_attribute(interpreter_, value, name, find_attribute_names(name));
        rest = stop == std::string_view::npos ? std::string_view() : rest.substr(stop);
      } else {
        const size_t stop = rest.find(']');
        if (stop == std::string_view::npos) fail("Missing ']' in format string");
        const std::string_view key = rest.substr(1, stop - 1);
        if (key.empty()) fail("Empty attribute in format string");
        const std::optional<size_t> index = number(key);
        value = get_item(interpreter_, value, index ? Value(static_cast<int64_t>(*index)) : Value(key));
        rest = rest.substr(stop + 1);
        if (!rest.empty() && rest[0] != '.' && rest[0] != '[') {
          fail("Only '.' or '[' may follow ']' in format field specifier");
        }
      }
    }
    return value;
  }

  static std::optional<size_t> number(std::string_view text) {
    uint32_t value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (text.empty() || result.ec != std::errc() || result.ptr != text.data() + text.size())
      return std::nullopt;
    return value;
  }

  Value argument(std::string_view name) {
    std::optional<size_t> index = number(name);
    if (name.empty()) {
      if (numbered_) fail("cannot switch from manual field specification to automatic field numbering");
      automatic_ = true;
      index = next_++;
    } else if (index) {
      if (automatic_) fail("cannot switch from automatic field numbering to manual field specification");
      numbered_ = true;
    }
    if (index) {
      if (*index >= arguments_.positional.size()) {
        fail("Replacement index {} out of range for positional args tuple", *index);
      }
      return arguments_.positional[*index];
    }
    for (const auto& [key, value] : arguments_.named) {
      if (key == name) return value;
    }
    fail("{}", quoted(name));
  }

  Interpreter& interpreter_;
  const Arguments& arguments_;
  size_t next_ = 0;
  bool automatic_ = false;
  bool numbered_ = false;
};

}  // namespace

std::string format_percent(const Value& format, const Value& arguments) {
  return PercentFormatter(format, arguments).run();
}

std::string format_braces(Interpreter& interpreter, std::string_view format, const Arguments& arguments) {
  return BraceFormatter(interpreter, arguments).run(format, 2);
}

}  // namespace qiao::jinja
