#include <fmt/format.h>
#include <unistd.h>

#include <iostream>
#include <memory>

#include "base/error.h"
#include "base/file.h"
#include "base/progress.h"
#include "base/suggest.h"
#include "cli/commands.h"
#include "hub/store.h"

namespace qiao::cli {
namespace {

struct RmFlags {
  std::vector<std::string> names;
  bool yes = false;
};

InstalledModel installed_named(const std::string& name, const std::filesystem::path& home) {
  if (const std::optional<HubReference> reference = parse_hub_reference(name)) {
    if (std::optional<InstalledModel> model = find_installed(*reference, home)) return *model;
    throw_error(ErrorKind::kNotFound, "{} is not here; `qiao list` shows what is", name);
  }
  std::vector<std::string> names;
  for (InstalledModel& model : installed_models(home)) {
    if (model.name == name) return std::move(model);
    names.push_back(model.name);
  }
  throw_error(ErrorKind::kNotFound, "no model '{}' is here{} Only what `qiao pull` fetched is removed", name,
              names.empty()                       ? "."
              : did_you_mean(name, names).empty() ? "."
                                                  : did_you_mean(name, names));
}

bool confirmed(const InstalledModel& model) {
  if (::isatty(STDIN_FILENO) == 0) {
    throw_error(ErrorKind::kInvalidInput, "{}: nobody is there to be asked; say -y to remove it", model.name);
  }
  std::fputs(
      fmt::format("Remove {} ({}, {})? [y/N] ", model.name, format_bytes(model.bytes), model.path.string())
          .c_str(),
      stderr);
  std::string answer;
  std::getline(std::cin, answer);
  return answer == "y" || answer == "Y" || answer == "yes";
}

void run_rm(const RmFlags& flags) {
  const std::filesystem::path home = qiao_home();
  std::vector<InstalledModel> models;  // all are looked up before the first is removed
  for (const std::string& name : flags.names) models.push_back(installed_named(name, home));
  for (const InstalledModel& model : models) {
    if (!flags.yes && !confirmed(model)) continue;
    remove_model(model, home);
    fmt::print("removed {} ({})\n", model.name, format_bytes(model.bytes));
  }
}

}  // namespace

void add_rm_command(CLI::App& app) {
  auto flags = std::make_shared<RmFlags>();
  CLI::App* command = app.add_subcommand("rm", "Remove models that `qiao pull` fetched");
  command->add_option("models", flags->names, "Names as `qiao list` shows them")
      ->required()
      ->type_name("MODEL");
  command->add_flag("-y,--yes", flags->yes, "Do not ask");
  command->footer("Examples:\n  qiao rm gemma3-270m\n  qiao rm -y hf:ORG/REPO:model-Q4_K_M.gguf");
  command->callback([flags] { run_rm(*flags); });
}

}  // namespace qiao::cli
