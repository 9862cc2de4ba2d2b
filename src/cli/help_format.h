// How --help looks.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace qiao::cli {

// Two columns: an option's names with what follows them, and its description with its default, wrapped to the
// terminal's width (100 columns where that is wider, or where there is none).
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option(const CLI::Option* option, bool is_positional) const override;
};

}  // namespace qiao::cli
