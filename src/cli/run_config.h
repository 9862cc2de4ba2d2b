// A run's settings as TOML: every flag's long name is a key, `steps = 100` for --steps 100.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace qiao::cli {

// Gives `command` (parsed) what `file` says of the flags that are not set yet. The key `mode` may stand there
// and must be the command's name. Returns the keys that were of use. Throws Error(kInvalidInput) in one line:
// the file, the key, its value and what is allowed; Error(kNotFound, kTooLarge) for the file itself.
std::vector<std::string> apply_config(CLI::App& command, const std::filesystem::path& file);

// What the flags of `command` are now, defaults filled in: keys of apply_config. Paths are absolute. Without
// the flags that are not the run's own (--out, --resume, --config, --dry-run, --quiet).
std::string write_config(CLI::App& command);

}  // namespace qiao::cli
