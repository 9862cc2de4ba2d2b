#include <fmt/format.h>

#include <memory>

#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_argument.h"

namespace qiao::cli {
namespace {

struct PullFlags {
  std::vector<std::string> names;
  std::string endpoint;
  bool quiet = false;
  bool json = false;
};

void run_pull(const PullFlags& flags) {
  PullOptions options;
  options.endpoint = flags.endpoint;
  if (flags.quiet || flags.json) options.style = Progress::Style::kSilent;
  Json pulled = Json::array();
  for (const std::string& name : flags.names) {
    const std::filesystem::path path = pull_model(name, options);
    if (flags.json) {
      pulled.push_back({{"name", name}, {"path", path.string()}});
    } else if (!flags.quiet) {
      fmt::print("{}\n", path.string());
    }
  }
  if (flags.json) fmt::print("{}\n", dump_json(pulled, 2));
}

}  // namespace

void add_pull_command(CLI::App& app) {
  auto flags = std::make_shared<PullFlags>();
  CLI::App* command = app.add_subcommand("pull", "Fetch models: of the catalogue, or of a hub");
  command
      ->add_option("models", flags->names,
                   "Names of the catalogue (see `qiao list`), hf:ORG/REPO[:FILE] or ms:ORG/REPO[:FILE]; FILE "
                   "is a path or "
                   "part of a GGUF's name, as Q4_K_M")
      ->required()
      ->type_name("MODEL");
  command
      ->add_option(
          "--endpoint", flags->endpoint,
          "The hub's address; else QIAO_HF_ENDPOINT or HF_ENDPOINT, and QIAO_MS_ENDPOINT, of the environment")
      ->type_name("URL");
  command->add_flag("-q,--quiet", flags->quiet, "No progress, no paths");
  command->add_flag("--json", flags->json, "Print a list of names and paths");
  command->footer(
      "A pull that was interrupted goes on where it was. HF_TOKEN, where set, is sent to the Hugging Face "
      "hub alone.\n"
      "\n"
      "Examples:\n"
      "  qiao pull smollm2\n"
      "  qiao pull hf:ORG/REPO-GGUF:Q4_K_M\n"
      "  qiao pull hf:ORG/REPO --endpoint https://HUB");
  command->callback([flags] { run_pull(*flags); });
}

}  // namespace qiao::cli
