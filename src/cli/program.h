// What is the same for every command: the first screen, mistyped names, errors of one line, exit codes.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace qiao::cli {

// Parses argv with `app` (whose subcommands do their work in callbacks) and returns the exit code: 0,
// kExitFailure or kExitUsage. Without arguments prints the first screen; "help X" is "X --help". What goes
// wrong is one line on stderr; a command or option that is not known comes with the nearest that is.
int run_program(CLI::App& app, int argc, const char* const* argv);

// An option's names with their dashes, and whether a value follows it: what completion and suggestions are
// made of.
struct OptionNames {
  std::vector<std::string> names;
  bool takes_value = false;
  std::string type;                  // "MODEL"
  std::vector<std::string> choices;  // of a value that must be one of them
  std::string description;
};
// Without the positional ones.
std::vector<OptionNames> options_of(const CLI::App& command);
// The type of the first positional argument: "MODEL", "FILE"; empty where there is none.
std::string positional_type_of(const CLI::App& command);
// In the order in which they were added.
std::vector<const CLI::App*> commands_of(const CLI::App& app);

}  // namespace qiao::cli
