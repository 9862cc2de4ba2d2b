#include "chat/argument_reader.h"

#include <algorithm>

#include "base/error.h"
#include "chat/tool_schema.h"

namespace qiao::chat {
namespace {

std::string_view trim_front(std::string_view text) {
  while (!text.empty() && is_json_space(text.front())) text.remove_prefix(1);
  return text;
}

std::string_view trim_spaces(std::string_view text) {
  text = trim_front(text);
  while (!text.empty() && is_json_space(text.back())) text.remove_suffix(1);
  return text;
}

// Removes the whitespace at both ends of a marker.
std::string core(std::string_view marker) { return std::string(trim_spaces(marker)); }

// A value that is not bare text, as JSON: what is JSON stays, Python's words become JSON's, the rest is text.
std::string value_json(std::string_view text) {
  text = trim_spaces(text);
  if (text == "True") return "true";
  if (text == "False") return "false";
  if (text == "None") return "null";
  try {
    parse_json(text, "");
    return std::string(text);
  } catch (const Error&) {
    return '"' + escape_json(text) + '"';
  }
}

}  // namespace

Match ArgumentReader::read(std::string& text, std::string& out) {
  switch (form_.body) {
    case CallForm::Body::kTags:
      return read_tags(text, out);
    case CallForm::Body::kGemma:
      return read_gemma(text, out);
    case CallForm::Body::kCallObject:
    case CallForm::Body::kCallList:
    case CallForm::Body::kJson:
      break;
  }
  return read_json(text, out);
}

Match ArgumentReader::read_json(std::string& text, std::string& out) {
  const size_t taken = json_.take(text);
  out.append(text, 0, taken);
  text.erase(0, taken);
  return json_.done() ? Match::kYes : Match::kMore;
}

// Appends what is certain to belong to the value and returns whether its end has come.
bool ArgumentReader::read_bare_value(std::string& text, std::string& out) {
  const std::string end = core(form_.value_end);
  const bool line_before = form_.value_end.starts_with('\n');
  const size_t found = text.find(end);
  if (found != std::string::npos) {
    std::string_view value = std::string_view(text).substr(0, found);
    if (line_before && value.ends_with('\n')) value.remove_suffix(1);
    out += escape_json(value) + '"';
    text.erase(0, found + end.size());
    return true;
  }
  size_t keep = marker_tail(text, end);
  if (line_before && keep < text.size() && text[text.size() - keep - 1] == '\n') ++keep;
  out += escape_json(std::string_view(text).substr(0, text.size() - keep));
  text.erase(0, text.size() - keep);
  return false;
}

bool ArgumentReader::read_json_value(std::string& text, std::string& out) {
  const std::string end = core(form_.value_end);
  const size_t found = text.find(end);
  if (found == std::string::npos) return false;
  out += value_json(std::string_view(text).substr(0, found));
  text.erase(0, found + end.size());
  return true;
}

Match ArgumentReader::read_tags(std::string& text, std::string& out) {
  if (at_ == At::kBegin) {
    out += '{';
    at_ = At::kFirstKey;
  }
  if (at_ == At::kFirstKey) {  // the whitespace is of the call's head, whether it has come with it or not
    text.erase(0, text.size() - trim_front(text).size());
    if (text.empty()) return Match::kMore;
    at_ = At::kKey;
  }
  while (true) {
    if (at_ == At::kKey) {
      TextMatch end(text);
      end.space();
      end.marker(core(form_.end));
      if (end.ok()) {
        text.erase(0, end.at());
        out += '}';
        return Match::kYes;
      }
      TextMatch key(text);
      key.space();
      key.marker(core(form_.key_begin));
      // The key ends where what follows it does: at the first of its bytes.
      const std::string key_end = core(form_.key_end), text_end = core(form_.text_key_end);
      const std::string first = key_end.substr(0, key_end.find_first_of(" \n"));
      const size_t name_at = key.at();
      const std::string_view name = key.ok() ? trim_spaces(key.until(first)) : std::string_view();
      bool bare = is_bare_text(parameters_, name);
      if (key.ok()) {
        const size_t after = name_at + std::string_view(text).substr(name_at).find(first);
        const auto ends_with = [&](const std::string& marker) {
          TextMatch match(std::string_view(text).substr(after));
          match.marker(marker);
          return std::pair(match.result(), after + match.at());
        };
        auto [result, behind] = ends_with(key_end);
        if (!text_end.empty()) {
          const auto [text_result, text_behind] = ends_with(text_end);
          if (result == Match::kMore || text_result == Match::kMore) return Match::kMore;
          if (text_result == Match::kYes) behind = text_behind;
          if (result == Match::kNo) result = text_result;
          bare = text_result == Match::kYes;
        }
        if (result == Match::kMore) return Match::kMore;
        if (result == Match::kYes) {
          out += std::string(any_ ? ", " : "") + '"' + escape_json(name) + "\": ";
          any_ = true;
          text.erase(0, behind);
          at_ = bare ? At::kBareBegin : At::kValue;
          continue;
        }
      }
      if (end.result() == Match::kMore || key.result() == Match::kMore) return Match::kMore;
      out += '}';
      return Match::kNo;
    }
    if (at_ == At::kBareBegin) {  // the line break of the form is not the value's
      if (form_.key_end.ends_with('\n')) {
        if (text.empty()) return Match::kMore;
        if (text.front() == '\n') text.erase(0, 1);
      }
      out += '"';
      at_ = At::kBare;
    }
    const bool done = at_ == At::kBare ? read_bare_value(text, out) : read_json_value(text, out);
    if (!done) return Match::kMore;
    at_ = At::kKey;
  }
}

Match ArgumentReader::read_gemma(std::string& text, std::string& out) {
  while (!text.empty()) {
    if (at_ == At::kQuoted) {
      const size_t found = text.find(form_.quote);
      const size_t keep = found == std::string::npos ? marker_tail(text, form_.quote) : 0;
      const size_t take = found == std::string::npos ? text.size() - keep : found;
      out += escape_json(std::string_view(text).substr(0, take));
      if (found == std::string::npos) {
        text.erase(0, take);
        return Match::kMore;
      }
      out += '"';
      text.erase(0, take + form_.quote.size());
      at_ = At::kValue;
      continue;
    }
    TextMatch quote(text);
    quote.literal(form_.quote);
    if (quote.result() == Match::kMore) return Match::kMore;
    if (quote.ok()) {
      text.erase(0, quote.at());
      out += '"';
      at_ = At::kQuoted;
      continue;
    }
    const char c = text.front();
    if (c == '{' || c == '[') {
      brackets_ += c;
      out += c;
      at_ = c == '{' ? At::kKey : At::kValue;
      text.erase(0, 1);
    } else if (c == '}' || c == ']') {
      if (brackets_.empty()) return Match::kNo;
      brackets_.pop_back();
      out += c;
      text.erase(0, 1);
      at_ = At::kValue;
      if (brackets_.empty()) return Match::kYes;
    } else if (c == ',') {
      out += ", ";
      text.erase(0, 1);
      at_ = brackets_.ends_with('{') ? At::kKey : At::kValue;
    } else if (c == ':') {
      out += ": ";
      text.erase(0, 1);
      at_ = At::kValue;
    } else if (is_json_space(c)) {
      text.erase(0, 1);
    } else if (at_ == At::kKey) {  // a key without quotes
      const size_t colon = text.find(':');
      if (colon == std::string::npos) return Match::kMore;
      out += '"' + escape_json(trim_spaces(std::string_view(text).substr(0, colon))) + '"';
      text.erase(0, colon);
    } else {
      out += c;
      text.erase(0, 1);
    }
  }
  return Match::kMore;
}

}  // namespace qiao::chat
