#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/program.h"

namespace qiao::cli {
namespace {

std::string joined(const std::vector<std::string>& words, const char* separator) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : separator) + word;
  return text;
}

bool is_file(const std::string& type) { return type == "FILE" || type == "DIR" || type == "PATH"; }

// The body of bash's case for the word after an option.
std::string bash_values(const OptionNames& option) {
  if (!option.choices.empty()) return fmt::format("_qiao_words \"{}\"", joined(option.choices, " "));
  if (option.type == "MODEL") return "_qiao_models";
  if (is_file(option.type)) return "compopt -o default";
  return ":";  // a number or a text: nothing to offer
}

constexpr const char* kBashHead = R"BASH(# bash completion for qiao: source <(qiao completion bash)
_qiao_words() { COMPREPLY=($(compgen -W "$1" -- "$current")); }
_qiao_models() {
  _qiao_words "$("${COMP_WORDS[0]}" list --names 2>/dev/null)"
  ((${#COMPREPLY[@]})) || compopt -o default
}
_qiao() {
  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command= i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    [[ ${COMP_WORDS[i]} == -* ]] || { command=${COMP_WORDS[i]} && break; }
  done
  case $command in
)BASH";

constexpr const char* kZshHead = R"ZSH(#compdef qiao
# zsh completion for qiao: qiao completion zsh > a file _qiao in a folder of $fpath
_qiao_models() {
  local -a names
  names=(${(f)"$($qiao list --names 2>/dev/null)"})
  compadd -a names
  _files
}
_qiao() {
  local -a commands
  local qiao=$words[1] command=$words[2]
  commands=(
)ZSH";

constexpr const char* kZshMiddle = R"ZSH(  )
  if ((CURRENT == 2)); then
    _describe command commands
    return
  fi
  words=($qiao "${(@)words[3,-1]}")
  ((CURRENT--))
  case $command in
)ZSH";

void print_bash(const CLI::App& app) {
  fmt::print("{}", kBashHead);
  std::vector<std::string> names;
  for (const CLI::App* command : commands_of(app)) {
    names.push_back(command->get_name());
    std::string values;
    std::vector<std::string> options;
    for (const OptionNames& option : options_of(*command)) {
      options.insert(options.end(), option.names.begin(), option.names.end());
      if (option.takes_value) {
        values +=
            fmt::format("        {}) {}; return ;;\n", joined(option.names, " | "), bash_values(option));
      }
    }
    const std::string type = positional_type_of(*command);
    const std::string rest = type == "MODEL"                       ? "_qiao_models"
                             : command->get_name() == "completion" ? "_qiao_words \"bash zsh\""
                             : is_file(type)                       ? "compopt -o default"
                                                                   : ":";
    fmt::print("    {})\n", command->get_name());
    if (!values.empty()) fmt::print("      case $before in\n{}      esac\n", values);
    fmt::print("      if [[ $current == -* ]]; then _qiao_words \"{}\"; else {}; fi\n      ;;\n",
               joined(options, " "), rest);
  }
  std::vector<std::string> first = names;
  first.emplace_back("help");
  for (const OptionNames& option : options_of(app))
    first.insert(first.end(), option.names.begin(), option.names.end());
  fmt::print("    help) _qiao_words \"{}\" ;;\n    \"\") _qiao_words \"{}\" ;;\n  esac\n}}\n",
             joined(names, " "), joined(first, " "));
  fmt::print("complete -F _qiao qiao ./qiao\n");
}

// A description inside '…[…]' of zsh's _arguments.
std::string zsh_text(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '\'') {
      result += "'\\''";
    } else if (c == '[' || c == ']' || c == ':' || c == '\\') {
      result += std::string("\\") + c;
    } else {
      result += c;
    }
  }
  return result;
}

std::string zsh_values(const std::string& type, const std::vector<std::string>& choices) {
  if (!choices.empty()) return "(" + joined(choices, " ") + ")";
  if (type == "MODEL") return "_qiao_models";
  return is_file(type) ? "_files" : " ";
}

void print_zsh(const CLI::App& app) {
  fmt::print("{}", kZshHead);
  for (const CLI::App* command : commands_of(app)) {
    fmt::print("    '{}:{}'\n", command->get_name(), zsh_text(command->get_description()));
  }
  fmt::print("{}", kZshMiddle);
  for (const CLI::App* command : commands_of(app)) {
    fmt::print("    {})\n      _arguments", command->get_name());
    for (const OptionNames& option : options_of(*command)) {
      const std::string value = option.takes_value ? fmt::format(":{}:{}", zsh_text(option.type),
                                                                 zsh_values(option.type, option.choices))
                                                   : "";
      if (option.names.size() == 1) {
        fmt::print(" \\\n        '{}[{}]{}'", option.names[0], zsh_text(option.description), value);
      } else {
        fmt::print(" \\\n        '({})'{{{}}}'[{}]{}'", joined(option.names, " "), joined(option.names, ","),
                   zsh_text(option.description), value);
      }
    }
    const std::string type = positional_type_of(*command);
    if (command->get_name() == "completion") {
      fmt::print(" \\\n        '1:shell:(bash zsh)'");
    } else if (!type.empty()) {
      fmt::print(" \\\n        '*:{}:{}'", zsh_text(type), zsh_values(type, {}));
    }
    fmt::print("\n      ;;\n");
  }
  fmt::print("  esac\n}}\n_qiao \"$@\"\n");
}

}  // namespace

void add_completion_command(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("completion", "Print a completion script for bash or zsh");
  command->add_option("shell", *shell, "bash or zsh")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh"}))
      ->type_name("SHELL");
  command->footer(
      "Examples:\n"
      "  source <(qiao completion bash)\n"
      "  qiao completion zsh > ~/.zsh/completions/_qiao");
  // The tree of commands is whole only when the callback runs.
  command->callback([shell, &app] { *shell == "bash" ? print_bash(app) : print_zsh(app); });
}

}  // namespace qiao::cli
