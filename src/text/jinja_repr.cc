// str() and repr() of values, as Python prints them.
#include <charconv>
#include <cmath>

#include "text/jinja_loop.h"
#include "text/jinja_operators.h"
#include "text/jinja_unicode.h"

namespace qiao::jinja {
namespace {

void append_quoted(std::string& out, std::string_view text) {
  const char quote =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos ? '"' : '\'';
  out += quote;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = utf8_next(text, at);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out.append(text.substr(begin, at - begin));
    } else if (c < 0x100) {
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<uint32_t>(c));
    } else if (c < 0x10000) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      fmt::format_to(std::back_inserter(out), "\\U{:08x}", static_cast<uint32_t>(c));
    }
  }
  out += quote;
}

class Printer {
 public:
  explicit Printer(std::string& out) : out_(out) {}

  void repr(const Value& value) {
    step();
    if (Budget* budget = Budget::current()) budget->check_stack();
    switch (value.kind()) {
      case Kind::kMissing:
      case Kind::kUndefined:
        out_ += "Undefined";
        break;
      case Kind::kNone:
        out_ += "None";
        break;
      case Kind::kBool:
        out_ += value.boolean() ? "True" : "False";
        break;
      case Kind::kInt:
        fmt::format_to(std::back_inserter(out_), "{}", value.integer());
        break;
      case Kind::kBigInt:
        out_ += static_cast<const String*>(value.object())->text;
        break;
      case Kind::kFloat:
        out_ += float_repr(value.number());
        break;
      case Kind::kString:
        step_bytes(value.text().size());
        if (value.string().markup) out_ += "Markup(";
        append_quoted(out_, value.text());
        if (value.string().markup) out_ += ')';
        break;
      case Kind::kList:
        out_ += '[';
        items(value.items());
        out_ += ']';
        break;
      case Kind::kTuple:
        out_ += '(';
        items(value.items());
        out_ += value.items().size() == 1 ? ",)" : ")";
        break;
      case Kind::kDict:
        dict(value.dict());
        break;
      case Kind::kRange: {
        const Range& range = value.range();
        fmt::format_to(std::back_inserter(out_), "range({}, {}", range.start, range.stop);
        if (range.step != 1) fmt::format_to(std::back_inserter(out_), ", {}", range.step);
        out_ += ')';
        break;
      }
      case Kind::kView: {
        fmt::format_to(std::back_inserter(out_), "{}([", type_name(value));
        for (size_t i = 0; i < value.view().dict->entries().size(); ++i) {
          if (i > 0) out_ += ", ";
          repr(value.view().at(i));
        }
        out_ += "])";
        break;
      }
      case Kind::kNamespace:
        name_space(value.name_space());
        break;
      case Kind::kFunction:
        out_ += value.function().repr();
        break;
      case Kind::kLoop:
        out_ += value.loop().repr();
        break;
      case Kind::kIterator:
      case Kind::kCycler:
        fmt::format_to(std::back_inserter(out_), "<{} object>", type_name(value));
        break;
    }
    check_string_size(out_.size());
  }

 private:
  void items(const std::vector<Value>& all) {
    for (size_t i = 0; i < all.size(); ++i) {
      if (i > 0) out_ += ", ";
      repr(all[i]);
    }
  }

  void dict(const Dict& dict) {
    out_ += '{';
    bool first = true;
    for (const auto& [key, item] : dict.entries()) {
      if (!first) out_ += ", ";
      first = false;
      repr(key);
      out_ += ": ";
      repr(item);
    }
    out_ += '}';
  }

  void name_space(const Namespace& space) {
    out_ += "<Namespace {";
    for (const Namespace* outer : open_) {
      if (outer == &space) {
        out_ += "...}>";
        return;
      }
    }
    open_.push_back(&space);
    bool first = true;
    for (const auto& [key, value] : space.entries()) {
      if (!first) out_ += ", ";
      first = false;
      append_quoted(out_, key);
      out_ += ": ";
      repr(value);
    }
    open_.pop_back();
    out_ += "}>";
  }

  std::string& out_;
  std::vector<const Namespace*> open_;
};

}  // namespace

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  std::string_view text(buffer, static_cast<size_t>(end - buffer));
  const size_t e = text.find('e');
  int exponent = 0;
  const char* first = text.data() + e + (text[e + 1] == '+' ? 2 : 1);
  std::from_chars(first, end, exponent);
  std::string out;
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c == '-') {
      out += '-';
    } else if (c != '.') {
      digits += c;
    }
  }
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (count > 1) out += '.' + digits.substr(1);
    return out + fmt::format("e{}{:02d}", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent) - 1, '0') + digits;
  if (count <= exponent + 1)
    return out + digits + std::string(static_cast<size_t>(exponent - count) + 1, '0') + ".0";
  return out + digits.substr(0, static_cast<size_t>(exponent) + 1) + '.' +
         digits.substr(static_cast<size_t>(exponent) + 1);
}

std::string quoted(std::string_view text) {
  std::string out;
  append_quoted(out, text);
  return out;
}

void append_text(std::string& out, const Value& value) {
  if (value.is_string()) {
    step_bytes(value.text().size());
    out += value.text();
  } else if (!value.is_undefined()) {
    Printer(out).repr(value);
  }
}

void append_repr(std::string& out, const Value& value) { Printer(out).repr(value); }

std::string to_text(const Value& value) {
  std::string out;
  append_text(out, value);
  return out;
}

std::string to_repr(const Value& value) {
  std::string out;
  append_repr(out, value);
  return out;
}

std::string escape_html(const Value& value) {
  std::string text = to_text(value);
  if (value.is_string() && value.string().markup) return text;
  if (text.find_first_of("&<>'\"") == std::string::npos) return text;
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  check_string_size(out.size());
  return out;
}

}  // namespace qiao::jinja
