#include "backend/conformance/conformance.h"

#include <charconv>
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
  std::vector<std::string> products;
  bool no_bench = false;
  bool json = false;
};

// "28672x4096"
conformance::ProductShape product_shape(const std::string& text) {
  constexpr int64_t kMost = int64_t{1} << 20;
  int64_t rows = 0, columns = 0;
  const char* const end = text.data() + text.size();
  const auto [by, first] = std::from_chars(text.data(), end, rows);
  const auto [rest, second] = std::from_chars(by == end || *by != 'x' ? by : by + 1, end, columns);
  if (first != std::errc() || second != std::errc() || rest != end || rows < 1 || columns < 1 ||
      rows > kMost || columns > kMost) {
    throw CLI::ValidationError(
        "--products",
        fmt::format("{}: not N x K of a weight, each from 1 to {}, as in 28672x4096", text, kMost));
  }
  return {rows, columns};
}

void run_conformance(Arguments& arguments) {
  for (const std::string& text : arguments.products)
    arguments.options.products.push_back(product_shape(text));
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
  command
      ->add_option("--backend,--device", arguments->backend, "The chip: auto, cpu, cuda, cuda:N, reference")
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
  CLI::Option* const products =
      command
          ->add_option("--products", arguments->products,
                       "Instead of all else, time products with weights of N x K, in BF16 and FP8")
          ->delimiter(',')
          ->type_name("NxK,…");
  command->add_option("--tokens", arguments->options.tokens, "How many rows those are of")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->needs(products)
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("N,…");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->footer(
      "Examples:\n  qiao conformance --backend cpu\n  qiao conformance --backend cpu --op linear --quick\n"
      "  qiao conformance --backend cuda --products 28672x4096,4096x14336 --tokens 512,2048 --fast");
  command->callback([arguments] { run_conformance(*arguments); });
}

}  // namespace qiao::cli
