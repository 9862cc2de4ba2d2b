#include <cstdio>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/model_argument.h"
#include "formats/inspection.h"

namespace qiao::cli {
namespace {

struct InspectFlags {
  std::string model;
  bool json = false;
  bool tensors = true;
  bool metadata_only = false;
  bool full = false;
};

void inspect(const InspectFlags& flags) {
  const std::filesystem::path named = flags.model;
  // A file is looked at as it is: also one that no model could be loaded from.
  std::error_code unreadable;
  const bool is_path = std::filesystem::exists(named, unreadable);
  const auto model = ModelFiles::open(is_path ? named : resolve_model(flags.model, /*may_pull=*/false),
                                      {.need_weights = false, .need_usable = false});
  const InspectOptions options{
      .summary = !flags.metadata_only, .tensors = flags.tensors && !flags.metadata_only, .full = flags.full};
  const std::string text =
      flags.json ? dump_json(inspect_json(*model, options), 2) + "\n" : inspect_text(*model, options);
  std::fwrite(text.data(), 1, text.size(), stdout);
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  const auto flags = std::make_shared<InspectFlags>();
  CLI::App* command = app.add_subcommand("inspect", "Show what is in a model's files: metadata and tensors");
  command->add_option("model,-m,--model", flags->model, kModelHelp)->required()->type_name("MODEL");
  command->add_flag("--json", flags->json, "Print JSON; arrays of more than 64 elements as {count, first}");
  command->add_flag("--tensors,!--no-tensors", flags->tensors, "List the tensors (default)");
  command->add_flag("--metadata-only", flags->metadata_only, "Print the metadata and nothing else");
  command->add_flag("--full", flags->full, "Print arrays and texts in whole");
  command->callback([flags] { inspect(*flags); });
  command->footer(
      "Examples:\n"
      "  qiao inspect smollm2 --no-tensors\n"
      "  qiao inspect model-00001-of-00003.gguf\n"
      "  qiao inspect model.gguf --json --full | jq '.metadata.\"tokenizer.ggml.tokens\" | length'");
}

}  // namespace qiao::cli
