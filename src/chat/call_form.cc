#include "chat/call_form.h"

#include <fmt/format.h>

#include <utility>

#include "chat/json_text.h"

namespace qiao::chat {
namespace {

void write_gemma(const CallForm& form, const Json& value, std::string& out) {
  if (value.is_string()) {
    out += form.quote + value.get_ref<const std::string&>() + form.quote;
  } else if (value.is_array()) {
    out += '[';
    for (size_t i = 0; i < value.size(); ++i) {
      if (i > 0) out += ',';
      write_gemma(form, value[i], out);
    }
    out += ']';
  } else if (value.is_object()) {
    out += '{';
    bool first = true;
    for (const auto& [key, entry] : value.items()) {
      if (!std::exchange(first, false)) out += ',';
      out += key;
      out += ':';
      write_gemma(form, entry, out);
    }
    out += '}';
  } else {
    out += dump_json(value);
  }
}

}  // namespace

std::string_view CallForm::marker() const {
  std::string_view text = begin_all.empty() ? begin : begin_all;
  while (!text.empty() && is_json_space(text.back())) text.remove_suffix(1);
  // "<tool_call>\n<function=": a model may well leave the line break out.
  if (const size_t space = text.find_first_of(" \n"); space != std::string_view::npos)
    text = text.substr(0, space);
  return text;
}

std::string write_call(const CallForm& form, std::string_view name, const Json& arguments) {
  switch (form.body) {
    case CallForm::Body::kCallObject:
    case CallForm::Body::kCallList:
      return fmt::format("{}{{\"name\": {}, \"{}\": {}}}{}", form.begin, dump_json(Json(name)),
                         form.arguments_key, dump_spaced(arguments), form.end);
    case CallForm::Body::kJson:
      return fmt::format("{}{}{}{}{}", form.begin, name, form.name_end, dump_spaced(arguments), form.end);
    case CallForm::Body::kTags: {
      std::string out = fmt::format("{}{}{}", form.begin, name, form.name_end);
      for (const auto& [key, value] : arguments.items()) {
        const bool text = value.is_string();
        out += form.key_begin + key;
        out += text && !form.text_key_end.empty() ? form.text_key_end : form.key_end;
        out += text ? value.get<std::string>() : dump_spaced(value);
        out += form.value_end;
      }
      return out + form.end;
    }
    case CallForm::Body::kGemma: {
      std::string out = fmt::format("{}{}", form.begin, name);
      write_gemma(form, arguments, out);
      return out + form.end;
    }
  }
  return {};
}

std::string write_calls(const CallForm& form, const Json& calls) {
  std::string out = form.begin_all;
  if (form.body == CallForm::Body::kCallList) out += '[';
  bool first = true;
  for (const Json& call : calls) {
    if (!std::exchange(first, false)) out += form.separator;
    const Json& function = call["function"];
    out += write_call(form, function["name"].get<std::string>(), function["arguments"]);
  }
  if (form.body == CallForm::Body::kCallList) out += ']';
  return out + form.end_all;
}

}  // namespace qiao::chat
