#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <iterator>

#include "base/error.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/generation_runner.h"
#include "cli/model_flags.h"

namespace qiao::cli {
namespace {

struct GenerateFlags {
  ModelFlags model;
  SamplingFlags sampling;
  std::string prompt, prompt_file;
  int32_t logprobs = -1;
  bool echo = false;
  bool json = false;
};

std::string read_prompt(const GenerateFlags& flags) {
  if (!flags.prompt_file.empty()) return read_file(flags.prompt_file, size_t{64} << 20);
  if (!flags.prompt.empty()) return flags.prompt;
  if (::isatty(STDIN_FILENO) != 0) {
    throw_error(ErrorKind::kInvalidInput, "no prompt; give one with -p \"…\", -f FILE, or on standard input");
  }
  return std::string(std::istreambuf_iterator<char>(std::cin), {});
}

void generate(const GenerateFlags& flags) {
  const std::string prompt = read_prompt(flags);
  const std::shared_ptr<LanguageModel> model = load_model(flags.model);
  GenerationRequest request;
  request.sampling = sampling_options(flags.sampling, *model);
  request.prompt = model->encode_prompt(prompt);
  request.max_tokens = flags.sampling.max_tokens;
  request.stop = flags.sampling.stop;
  request.ignore_eos = flags.sampling.ignore_eos;
  request.adapter = flags.model.adapter();
  request.logprobs = flags.logprobs >= 0;
  request.top_logprobs = std::max(flags.logprobs, 0);
  Engine engine(model, engine_options(flags.model, 1));
  const InterruptGuard guard;
  if (flags.echo && !flags.json) std::fwrite(prompt.data(), 1, prompt.size(), stdout);
  const GenerationResult result = run_generation(engine, std::move(request), [&](std::string_view text) {
    if (flags.json) return;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  });
  if (flags.json) {
    std::printf("%s\n", dump_json(to_json(result, model->tokenizer()), 2).c_str());
  } else {
    std::printf("\n");
    if (!flags.model.quiet && ::isatty(STDERR_FILENO) != 0) {
      std::fprintf(stderr, "\033[2m%s\033[0m\n", statistics(result.last).c_str());
    }
  }
  if (result.last.finish == FinishReason::kCancelled) throw CLI::RuntimeError(130);
}

}  // namespace

void add_generate_command(CLI::App& app) {
  const auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command = app.add_subcommand("generate", "Continue a text, without a chat template");
  command->add_option("-p,--prompt", flags->prompt, "The text to continue; without it, standard input")
      ->type_name("TEXT");
  command->add_option("-f,--file", flags->prompt_file, "Read the prompt from a file")->type_name("FILE");
  add_model_flags(*command, flags->model);
  add_adapter_flag(*command, flags->model);
  add_sampling_flags(*command, flags->sampling);
  command
      ->add_option("--logprobs", flags->logprobs,
                   "With --json: log-probabilities, and of the N likeliest tokens each")
      ->check(CLI::Range(0, 20))
      ->type_name("N");
  command->add_flag("--echo", flags->echo, "Print the prompt before its continuation");
  command->add_flag("--json", flags->json,
                    "Print one JSON object: text, tokens, finish_reason, usage, timings");
  command->footer(
      "Examples:\n"
      "  qiao generate -p \"Once upon a time\" -n 64\n"
      "  git diff | qiao generate -m qwen2.5-coder-1.5b --temp 0 --stop $'\\n\\n'");
  command->callback([flags] { generate(*flags); });
}

}  // namespace qiao::cli
