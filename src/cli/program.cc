#include "cli/program.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <sstream>
#include <system_error>

#include "base/error.h"
#include "base/suggest.h"
#include "cli/commands.h"

namespace qiao::cli {
namespace {

void print_first_screen(const CLI::App& app) {
  fmt::print("{}\n\nTry:\n", app.get_description());
  fmt::print("  qiao chat \"Why is the sky blue?\"        the first time it fetches a small model\n");
  fmt::print("  qiao chat -m qwen2.5-coder-1.5b         a conversation with one that knows more\n");
  fmt::print("  qiao serve                              OpenAI-compatible server and a page to chat on\n");
  fmt::print("\nCommands:\n");
  for (const CLI::App* command : commands_of(app)) {
    fmt::print("  {:<12}  {}\n", command->get_name(), command->get_description());
  }
  fmt::print("\n`qiao COMMAND --help` shows what a command takes, with an example.\n");
}

// To stderr never with fmt::print: it throws where stderr is closed or full, and there is nobody left to
// tell.
int complain(const std::string& line) {
  std::fputs(fmt::format("qiao: {}\n", line).c_str(), stderr);
  return kExitUsage;
}

// The command that was being parsed, and how a person calls it: "train pretrain".
const CLI::App& parsed_command(const CLI::App& app, std::string* called) {
  const CLI::App* current = &app;
  while (!current->get_subcommands().empty()) {
    current = current->get_subcommands().back();
    *called += (called->empty() ? "" : " ") + current->get_name();
  }
  return *current;
}

std::vector<std::string> command_names(const std::vector<const CLI::App*>& commands) {
  std::vector<std::string> names;
  for (const CLI::App* command : commands) names.push_back(command->get_name());
  return names;
}

// CLI11's "Could not convert: --lr = abc", with what was expected.
std::string conversion_text(const CLI::App& command, const std::string& what) {
  const size_t name = what.find("--"), equals = what.find(" = ");
  if (name == std::string::npos || equals == std::string::npos || equals < name) return what;
  const std::string option = what.substr(name, equals - name);
  const CLI::Option* found = command.get_option_no_throw(option);
  const std::string type = found == nullptr ? "" : found->get_type_name();
  const char* expected = type.starts_with("N") || type.starts_with("INT") || type.starts_with("UINT")
                             ? "an integer"
                             : "a number";
  return fmt::format("{} is {}: {} was expected", option, what.substr(equals + 3), expected);
}

int explain_usage(const CLI::App& app, const CLI::ParseError& error) {
  std::string called;
  const CLI::App& command = parsed_command(app, &called);
  const std::string name = called.empty() ? "" : called + ": ";
  const std::string see =
      fmt::format("`qiao {}{}--help` shows what it takes", called, called.empty() ? "" : " ");
  // Where one of its own commands was expected.
  if (const std::vector<std::string> given = command.remaining();
      &command != &app && !commands_of(command).empty() && !given.empty() &&
      !given.front().starts_with("-")) {
    const std::string meant = did_you_mean(given.front(), command_names(commands_of(command)));
    return complain(
        fmt::format("{}unknown command '{}'{}", name, given.front(), meant.empty() ? "; " + see : meant));
  }
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const std::vector<std::string> extras = app.remaining(true);
    const std::string extra = extras.empty() ? "" : extras.front();
    if (extra.starts_with("-")) {
      std::vector<std::string> names;
      for (const OptionNames& option : options_of(command)) {
        names.insert(names.end(), option.names.begin(), option.names.end());
      }
      const std::string meant = did_you_mean(extra.substr(0, extra.find('=')), names);
      return complain(
          fmt::format("{}unknown option '{}'{}", name, extra, meant.empty() ? "; " + see : meant));
    }
    return complain(fmt::format("{}'{}' is one argument too many; {}", name, extra, see));
  }
  std::string what = error.what();
  if (dynamic_cast<const CLI::ConversionError*>(&error) != nullptr) what = conversion_text(command, what);
  std::replace(what.begin(), what.end(), '\n', ' ');
  while (what.ends_with(' ')) what.pop_back();
  return complain(fmt::format("{}{}; {}", name, what, see));
}

int parse(CLI::App& app, std::vector<std::string> arguments) {
  // llama.cpp's short names of several letters, which CLI11 would take apart.
  for (std::string& argument : arguments) {
    if (argument == "--") break;
    if (argument == "-np") argument = "--parallel";
    if (argument == "-md") argument = "--draft";
    if (argument == "-ctk") argument = "--cache-type-k";
    if (argument == "-ctv") argument = "--cache-type-v";
    if (argument == "-sys") argument = "--system-prompt";
  }
  try {
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
    app.parse(std::move(arguments));
    return 0;
  } catch (const CLI::RuntimeError& e) {  // a command's own exit code
    return e.get_exit_code();
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() != 0) return explain_usage(app, e);
    std::ostringstream text;  // --help, --version
    app.exit(e, text, text);
    std::string help = text.str();
    while (help.ends_with('\n')) help.pop_back();
    fmt::print("{}\n", help);
    return 0;
  } catch (const std::exception& e) {
    std::fputs(fmt::format("qiao: {}\n", e.what()).c_str(), stderr);
    return kExitFailure;
  }
}

}  // namespace

std::vector<OptionNames> options_of(const CLI::App& command) {
  std::vector<OptionNames> result;
  for (const CLI::Option* option : command.get_options()) {
    OptionNames names;
    for (const std::string& name : option->get_snames()) names.names.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) names.names.push_back("--" + name);
    if (names.names.empty()) continue;
    names.takes_value = option->get_items_expected_max() > 0;
    names.description = option->get_description();
    // CLI11 writes "TYPE:{one,other}" where the value must be one of a set.
    const std::string type = option->get_type_name();
    names.type = type.substr(0, type.find(':'));
    const size_t open = type.find('{'), close = type.find('}');
    if (open != std::string::npos && close != std::string::npos && open < close) {
      names.choices = CLI::detail::split(type.substr(open + 1, close - open - 1), ',');
    }
    result.push_back(std::move(names));
  }
  return result;
}

std::string positional_type_of(const CLI::App& command) {
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_positional()) {
      const std::string type = option->get_type_name();
      return type.substr(0, type.find(':'));
    }
  }
  return "";
}

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App* command) { return !command->get_name().empty(); });
}

namespace {

// A standard descriptor that was closed would be the number of the next file that is opened, and what is
// printed would go into it.
void occupy_standard_descriptors() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    if (::open("/dev/null", O_RDONLY) < 0)
      return;  // writing to it fails, as it should; the lowest free is fd
  }
}

int run_arguments(CLI::App& app, std::vector<std::string> arguments);

}  // namespace

int run_program(CLI::App& app, int argc, const char* const* argv) {
  occupy_standard_descriptors();
  int code = kExitFailure, problem = 0;
  try {
    code = run_arguments(app, {argv + std::min(argc, 1), argv + argc});
  } catch (const std::system_error& error) {  // fmt::print's, of a help that is longer than a buffer
    problem = error.code().value();
  }
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0 && problem == 0) return code;
  if (problem == 0) problem = errno;
  std::fputs(
      fmt::format("qiao: standard output: {}\n", problem != 0 ? std::strerror(problem) : "cannot be written")
          .c_str(),
      stderr);
  return code == 0 ? kExitFailure : code;
}

namespace {

int run_arguments(CLI::App& app, std::vector<std::string> arguments) {
  if (arguments.empty()) {
    print_first_screen(app);
    return 0;
  }
  const std::vector<std::string> names = command_names(commands_of(app));
  if (arguments[0] == "help") {
    arguments.erase(arguments.begin());
    arguments.resize(std::min<size_t>(arguments.size(), 2));  // a command, and one of its own
    arguments.emplace_back("--help");
  }
  const auto named = std::find_if(arguments.begin(), arguments.end(),
                                  [](const std::string& argument) { return !argument.starts_with("-"); });
  if (named != arguments.end() && std::find(names.begin(), names.end(), *named) == names.end()) {
    const std::string meant = did_you_mean(*named, names);
    return complain(
        fmt::format("unknown command '{}'{}", *named, meant.empty() ? "; `qiao` lists them" : meant));
  }
  return parse(app, std::move(arguments));
}

}  // namespace

}  // namespace qiao::cli
