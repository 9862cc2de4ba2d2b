#include "cli/run_config.h"

#include <toml++/toml.h>
#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/quote.h"
#include "base/suggest.h"

namespace qiao::cli {
namespace {

constexpr size_t kMostBytes = size_t{1} << 20;

// What a flag takes, by the name that its help gives to the value.
enum class ValueKind { kFlag, kInteger, kNumber, kSwitch, kPath, kText };

std::string key_of(const CLI::Option& option) {
  return option.get_lnames().empty() ? std::string() : option.get_lnames().front();
}

ValueKind kind_of(const CLI::Option& option) {
  if (option.get_items_expected_max() == 0) return ValueKind::kFlag;
  const std::string type = option.get_type_name().substr(0, option.get_type_name().find(':'));
  if (type == "N") return ValueKind::kInteger;
  if (type == "X") return ValueKind::kNumber;
  if (type == "on|off") return ValueKind::kSwitch;
  if (type == "FILE" || type == "DIR" || type == "RUN") return ValueKind::kPath;
  return ValueKind::kText;
}

bool takes_list(const CLI::Option& option) { return option.get_items_expected_max() > 1; }

// "one of constant, linear, cosine" where the flag has a set of values.
std::string allowed_by(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const size_t open = type.find('{'), close = type.find('}');
  if (open != std::string::npos && close != std::string::npos && open < close) {
    std::string names = type.substr(open + 1, close - open - 1);
    for (size_t at = names.find(','); at != std::string::npos; at = names.find(',', at + 2))
      names.insert(at + 1, " ");
    return names.find(',') == std::string::npos ? names : "one of " + names;
  }
  const bool is_not_negative = type.find(":NONNEGATIVE") != std::string::npos;
  switch (kind_of(option)) {
    case ValueKind::kFlag:
      return "true or false";
    case ValueKind::kInteger:
      return is_not_negative ? "an integer of 0 or more" : "an integer";
    case ValueKind::kNumber:
      return is_not_negative ? "a number of 0 or more" : "a number";
    case ValueKind::kSwitch:
      return "true, false, \"on\" or \"off\"";
    case ValueKind::kPath:
    case ValueKind::kText:
      break;
  }
  return takes_list(option) ? "a string, or a list of strings" : "a string";
}

// As it stands in the file.
std::string shown(const toml::node& value) {
  std::ostringstream text;
  value.visit([&](const auto& node) { text << node; });
  return printable(text.str());
}

// What the flag would be given on the command line; nothing: it is not given. False for the wrong type.
bool read_values(const CLI::Option& option, const toml::node& value, std::vector<std::string>& texts) {
  switch (kind_of(option)) {
    case ValueKind::kFlag:
      if (!value.is_boolean()) return false;
      if (value.as_boolean()->get()) texts.emplace_back("true");
      return true;
    case ValueKind::kInteger:
      if (!value.is_integer()) return false;
      texts.push_back(fmt::format("{}", value.as_integer()->get()));
      return true;
    case ValueKind::kNumber:
      if (!value.is_number()) return false;
      texts.push_back(value.is_integer() ? fmt::format("{}", value.as_integer()->get())
                                         : fmt::format("{}", value.as_floating_point()->get()));
      return true;
    case ValueKind::kSwitch:
      if (value.is_boolean()) {
        texts.emplace_back(value.as_boolean()->get() ? "on" : "off");
        return true;
      }
      break;
    case ValueKind::kPath:
    case ValueKind::kText:
      break;
  }
  if (value.is_string()) {
    texts.push_back(value.as_string()->get());
    return true;
  }
  if (!takes_list(option) || !value.is_array() || value.as_array()->empty()) return false;
  for (const toml::node& each : *value.as_array()) {
    if (!each.is_string()) return false;
    texts.push_back(each.as_string()->get());
  }
  return true;
}

bool is_key(const CLI::Option& option) {
  const std::string key = key_of(option);
  return !key.empty() && key != "help" && key != "config" && key != "resume";
}

bool is_of_the_run(const CLI::Option& option) {
  const std::string key = key_of(option);
  return is_key(option) && key != "out" && key != "dry-run" && key != "profile" && key != "quiet";
}

// Whether the value is of use: the flag was not set yet.
bool apply(CLI::App& command, const std::string& where, const std::string& key, const toml::node& value) {
  std::vector<std::string> keys;
  CLI::Option* option = nullptr;
  for (CLI::Option* each : command.get_options()) {
    if (!is_key(*each)) continue;
    keys.push_back(key_of(*each));
    if (keys.back() == key) option = each;
  }
  if (option == nullptr) {
    const std::string meant = did_you_mean(key, keys);
    throw_error(ErrorKind::kInvalidInput, "{}: unknown key {}{}", where, quote_text(key),
                meant.empty()
                    ? "; the long names of `qiao train " + command.get_name() + " --help` are allowed"
                    : meant);
  }
  const auto refuse = [&] {
    throw_error(ErrorKind::kInvalidInput, "{}: {} = {}: {} was expected", where, key, shown(value),
                allowed_by(*option));
  };
  std::vector<std::string> texts;
  if (!read_values(*option, value, texts)) refuse();
  if (option->count() > 0 || texts.empty()) return false;
  try {
    option->add_result(texts);
    option->run_callback();
  } catch (const CLI::Error&) {
    refuse();
  }
  return true;
}

toml::table parse_config(const std::filesystem::path& file) {
  const std::string text = read_regular_file(file, kMostBytes);
  try {
    return toml::parse(text);
  } catch (const toml::parse_error& error) {
    throw_error(ErrorKind::kInvalidInput, "{}:{}: not valid TOML: {}", file.string(),
                error.source().begin.line, printable(error.description(), 200));
  }
}

// A number as TOML has it, whatever way it was typed.
std::string number_text(const CLI::Option& option, const std::string& text, ValueKind kind) {
  try {
    return kind == ValueKind::kInteger ? fmt::format("{}", std::stoll(text))
                                       : fmt::format("{}", std::stod(text));
  } catch (const std::out_of_range&) {
    throw_error(ErrorKind::kInvalidInput, "--{} is {}; {} was expected", key_of(option), printable(text),
                kind == ValueKind::kInteger ? "a number below 2^63" : "a number of float64");
  }
}

std::string value_text(const CLI::Option& option, const std::string& text) {
  const ValueKind kind = kind_of(option);
  if (kind == ValueKind::kInteger || kind == ValueKind::kNumber) return number_text(option, text, kind);
  return dump_json(kind == ValueKind::kPath ? std::filesystem::absolute(text).lexically_normal().string()
                                            : text);
}

}  // namespace

std::vector<std::string> apply_config(CLI::App& command, const std::filesystem::path& file) {
  const toml::table table = parse_config(file);
  std::vector<std::string> keys;
  for (const auto& [name, value] : table) {
    const std::string key(name.str());
    const std::string where = fmt::format("{}:{}", file.string(), value.source().begin.line);
    if (key != "mode") {
      if (apply(command, where, key, value)) keys.push_back(key);
    } else if (!value.is_string() || value.as_string()->get() != command.get_name()) {
      throw_error(ErrorKind::kInvalidInput, "{}: mode = {}: \"{}\" was expected, as the command says", where,
                  shown(value), command.get_name());
    }
  }
  return keys;
}

std::string write_config(CLI::App& command) {
  std::string text = fmt::format("mode = \"{}\"\n", command.get_name());
  for (CLI::Option* option : command.get_options()) {
    if (!is_of_the_run(*option)) continue;
    const std::string key = key_of(*option);
    if (kind_of(*option) == ValueKind::kFlag) {
      text += fmt::format("{} = {}\n", key, option->count() > 0);
      continue;
    }
    std::vector<std::string> values = option->results();
    if (values.empty()) {
      option->capture_default_str();
      values = {option->get_default_str()};
      // Paths are printed in quotes.
      if (takes_list(*option) || values[0].empty() || values[0].starts_with('"')) continue;
    }
    if (!takes_list(*option)) {
      text += fmt::format("{} = {}\n", key, value_text(*option, values.back()));
      continue;
    }
    std::string list;
    for (const std::string& value : values) list += (list.empty() ? "" : ", ") + value_text(*option, value);
    text += fmt::format("{} = [{}]\n", key, list);
  }
  return text;
}

}  // namespace qiao::cli
