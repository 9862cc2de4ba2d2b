#include "backend/conformance/conformance.h"

#include <cstdio>
#include <memory>

#include "backend/backend.h"
#include "cli/commands.h"

namespace qiao::cli {
namespace {

struct Arguments {
  std::string backend = "auto";
  conformance::Options options;
  BackendOptions backend_options;
  bool no_bench = false;
  bool json = false;
};

void run_conformance(Arguments& arguments) {
  arguments.options.bench = !arguments.no_bench && !arguments.options.quick;
  const std::unique_ptr<Backend> chip = make_backend(arguments.backend, arguments.backend_options);
  const conformance::Report report = conformance::run(*chip, arguments.options);
  const std::string text =
      arguments.json ? dump_json(conformance::to_json(report), 2) + "\n" : conformance::to_table(report);
  std::fputs(text.c_str(), stdout);
  if (!report.green) throw CLI::RuntimeError(kExitFailure);
}

}  // namespace

void add_conformance_command(CLI::App& app) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "conformance", "Prove a chip: every op against the reference, within derived bounds, with its speed");
  command->add_option("--backend", arguments->backend, "The chip: auto, cpu, cuda, cuda:N, reference")
      ->capture_default_str();
  command->add_option("--op", arguments->options.op, "Only this op");
  command->add_option("--seed", arguments->options.seed, "Of the random cases; the same seed, the same cases")
      ->capture_default_str();
  command
      ->add_option("-t,--threads", arguments->backend_options.threads, "Threads of the chip; 0: all usable")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command->add_flag("--quick", arguments->options.quick, "Fewer and smaller cases, no timing");
  command->add_flag("--no-bench", arguments->no_bench, "All cases, no timing");
  command->add_flag(
      "--fast", arguments->backend_options.fast,
      "Of a GPU that adds up in the order that is quickest for each shape: rows are not compared "
      "with themselves alone");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->footer(
      "Examples:\n  qiao conformance --backend cpu\n  qiao conformance --backend cpu --op linear --quick");
  command->callback([arguments] { run_conformance(*arguments); });
}

}  // namespace qiao::cli
