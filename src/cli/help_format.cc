#include "cli/help_format.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

namespace qiao::cli {
namespace {

constexpr size_t kNameColumn = 30;
constexpr size_t kWidest = 100, kNarrowest = 50;

size_t terminal_width() {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return kWidest;
  return std::clamp<size_t>(size.ws_col, kNarrowest, kWidest);
}

// Characters, not bytes: "T±B".
size_t length_of(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

// "-n, --predict N".
std::string names_of(const CLI::Option& option, bool is_positional) {
  // CLI11 adds what it checks, "N:INT in [0 - 1024]": the name alone is for people.
  const std::string type = option.get_type_name().substr(0, option.get_type_name().find(':'));
  std::string text;
  if (is_positional) {
    text = option.get_name(true);
    if (text != type && !type.empty()) text = type;
  } else {
    for (const std::string& name : option.get_snames()) text += (text.empty() ? "-" : ", -") + name;
    for (const std::string& name : option.get_lnames()) text += (text.empty() ? "--" : ", --") + name;
    if (option.get_items_expected_max() > 0 && !type.empty()) text += " " + type;
  }
  return is_positional && option.get_items_expected_max() > 1 ? text + "…" : text;
}

}  // namespace

std::string HelpFormatter::make_option(const CLI::Option* option, bool is_positional) const {
  const std::string names = "  " + names_of(*option, is_positional);
  std::string description = option->get_description();
  if (!option->get_default_str().empty() && option->get_items_expected_max() > 0)
    description += fmt::format(" [{}]", option->get_default_str());
  std::string out = names;
  size_t column = length_of(names);
  if (column + 2 > kNameColumn) {
    out += "\n";
    column = 0;
  }
  const size_t width = terminal_width();
  std::istringstream words(description);
  bool first = true;
  for (std::string word; words >> word;) {
    if (!first && column + 1 + length_of(word) > width) {
      out += "\n";
      column = 0;
      first = true;
    }
    const size_t gap = first ? kNameColumn - column : 1;
    out += std::string(gap, ' ') + word;
    column += gap + length_of(word);
    first = false;
  }
  return out + "\n";
}

}  // namespace qiao::cli
