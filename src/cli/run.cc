#include "cli/run.h"

#include <fmt/format.h>

#include "base/version.h"
#include "cli/commands.h"
#include "cli/help_format.h"
#include "cli/program.h"
#include "cli/ranks.h"

namespace qiao::cli {
namespace {

// One line a command, in the order in which `qiao --help` lists them.
constexpr AddCommand kCommands[] = {
    add_chat_command,     add_generate_command,   add_serve_command,     add_embed_command,
    add_pull_command,     add_list_command,       add_rm_command,        add_inspect_command,
    add_train_command,    add_data_command,       add_eval_command,      add_plot_command,
    add_merge_command,    add_export_command,     add_tokenizer_command, add_tokenize_command,
    add_template_command, add_constrain_command,  add_bench_command,     add_conformance_command,
    add_devices_command,  add_completion_command,
};

}  // namespace

int run(int argc, char** argv) {
  CLI::App app("Qiao (桥): talk to, serve and measure language models on the machine at hand.", "qiao");
  app.set_version_flag("--version", fmt::format("qiao {}", version()), "Print the version and exit");
  app.formatter(std::make_shared<HelpFormatter>());
  for (const AddCommand add : kCommands) add(app);
  app.set_help_all_flag("--help-all", "Help of every command");  // after them: they need none of their own
  const int code = run_program(app, argc, argv);
  leave_ranks(code);
  return code;
}

}  // namespace qiao::cli
