// The commands of the qiao program, one file each. A command adds its subcommand, flags, help text and an
// example.
#pragma once

#include <CLI/CLI.hpp>

namespace qiao::cli {

using AddCommand = void (*)(CLI::App& app);

void add_bench_command(CLI::App& app);
void add_chat_command(CLI::App& app);
void add_completion_command(CLI::App& app);
void add_conformance_command(CLI::App& app);
void add_constrain_command(CLI::App& app);
void add_data_command(CLI::App& app);
void add_devices_command(CLI::App& app);
void add_embed_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_inspect_command(CLI::App& app);
void add_list_command(CLI::App& app);
void add_pull_command(CLI::App& app);
void add_rm_command(CLI::App& app);
void add_serve_command(CLI::App& app);
void add_template_command(CLI::App& app);
void add_tokenize_command(CLI::App& app);
void add_train_command(CLI::App& app);

// What a failed run exits with: 1 for wrong input or a failed job, 2 for wrong usage (flags, unsupported
// schema).
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;

}  // namespace qiao::cli
