#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <iterator>

#include "base/error.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/generation_runner.h"
#include "cli/line_editor.h"
#include "cli/model_argument.h"
#include "cli/model_flags.h"
#include "parallel/communicator.h"

namespace qiao::cli {
namespace {

struct ChatFlags {
  ModelFlags model;
  SamplingFlags sampling;
  std::vector<std::string> words;
  std::string prompt, prompt_file, system;
  std::vector<std::string> variables;  // KEY=JSON for the template
  bool json = false;
};

constexpr const char* kHelp =
    "  /clear          forget the conversation\n"
    "  /again          answer the last message anew\n"
    "  /system TEXT    set the system prompt and start over\n"
    "  /stats          show tokens and speed after each answer, or stop to\n"
    "  /help           this\n"
    "  /exit           leave (Ctrl-D too)\n"
    "A line that ends in \\ goes on; \"\"\" opens and closes a text of many lines.\n"
    "Ctrl-C stops an answer.\n";

// One conversation with a model.
class Chat {
 public:
  Chat(const ChatFlags& flags, std::shared_ptr<LanguageModel> model)
      : flags_(flags), model_(std::move(model)), engine_(model_, engine_options(flags.model, 1)) {
    sampling_ = sampling_options(flags.sampling, *model_);
    for (const std::string& variable : flags.variables) {
      const size_t equals = variable.find('=');
      if (equals == std::string::npos || equals == 0) {
        throw_error(ErrorKind::kInvalidInput, "--set {}: expected KEY=JSON, as in enable_thinking=false",
                    variable);
      }
      variables_[variable.substr(0, equals)] = parse_json(variable.substr(equals + 1), "--set " + variable);
    }
    start_over(flags.system);
  }

  void start_over(const std::string& system) {
    messages_ = Json::array();
    if (!system.empty()) messages_.push_back({{"role", "system"}, {"content", system}});
    system_ = system;
  }
  const std::string& system() const { return system_; }

  // Asks and prints; the conversation grows by both messages. An interrupted answer stays as far as it came.
  GenerationResult ask(const std::string& text, const std::function<void(std::string_view)>& on_text) {
    messages_.push_back({{"role", "user"}, {"content", text}});
    Json variables = variables_;
    variables["messages"] = messages_;
    variables["add_generation_prompt"] = true;
    GenerationRequest request;
    try {
      request.prompt = model_->encode_chat(std::move(variables));
      request.sampling = sampling_;
      if (!flags_.sampling.seed) request.sampling.seed = random_seed();
      request.max_tokens = flags_.sampling.max_tokens;
      request.stop = flags_.sampling.stop;
      request.ignore_eos = flags_.sampling.ignore_eos;
      request.adapter = flags_.model.adapter();
      GenerationResult result = run_generation(engine_, std::move(request), on_text);
      messages_.push_back({{"role", "assistant"}, {"content", result.text}});
      return result;
    } catch (const Error&) {
      messages_.erase(messages_.size() - 1);
      throw;
    }
  }

  // Takes back the last exchange; returns what was asked, empty where there is none.
  std::string take_back() {
    if (messages_.size() < 2 || messages_.back()["role"] != "assistant") return {};
    messages_.erase(messages_.size() - 1);
    std::string text = messages_.back()["content"].get<std::string>();
    messages_.erase(messages_.size() - 1);
    return text;
  }

  const LanguageModel& model() const { return *model_; }

 private:
  const ChatFlags& flags_;
  std::shared_ptr<LanguageModel> model_;
  Engine engine_;
  SamplingOptions sampling_;
  Json variables_ = Json::object();
  Json messages_;
  std::string system_;
};

void print_text(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void answer_once(const ChatFlags& flags, const std::string& text) {
  Chat chat(flags, load_model(flags.model));
  const InterruptGuard guard;
  const GenerationResult result = chat.ask(text, [&](std::string_view piece) {
    if (!flags.json) print_text(piece);
  });
  if (flags.json) {
    std::printf("%s\n", dump_json(to_json(result, chat.model().tokenizer()), 2).c_str());
  } else {
    std::printf("\n");
    if (!flags.model.quiet && ::isatty(STDERR_FILENO) != 0) {
      std::fprintf(stderr, "\033[2m%s\033[0m\n", statistics(result.last).c_str());
    }
  }
  if (result.last.finish == FinishReason::kCancelled) throw CLI::RuntimeError(130);
}

void converse(const ChatFlags& flags) {
  Chat chat(flags, load_model(flags.model));
  std::printf("%s is here. /help lists commands; Ctrl-D leaves.\n", chat.model().name().c_str());
  LineEditor editor("> ", qiao_home() / "history");
  const InterruptGuard guard;
  bool show_statistics = false;
  bool interrupted_before = false;
  std::string line;
  while (true) {
    InterruptGuard::reset();
    const LineEditor::Outcome outcome = editor.read(line);
    if (outcome == LineEditor::Outcome::kEnd) break;
    if (outcome == LineEditor::Outcome::kInterrupted) {
      if (interrupted_before) break;
      interrupted_before = true;
      std::printf("(Ctrl-C once more, or Ctrl-D, leaves)\n");
      continue;
    }
    interrupted_before = false;
    if (line.find_first_not_of(" \t\n") == std::string::npos) continue;
    if (line.starts_with('/')) {
      if (line == "/exit" || line == "/quit" || line == "/bye") return;
      if (line == "/clear") {
        chat.start_over(chat.system());
        std::printf("(forgotten)\n");
        continue;
      }
      if (line == "/stats") {
        show_statistics = !show_statistics;
        continue;
      }
      if (line.starts_with("/system ")) {
        chat.start_over(line.substr(8));
        std::printf("(started over)\n");
        continue;
      }
      if (line != "/again") {
        std::printf("%s%s", line == "/help" ? "" : "No such command. There are:\n", kHelp);
        continue;
      }
      line = chat.take_back();
      if (line.empty()) {
        std::printf("(nothing has been asked yet)\n");
        continue;
      }
    }
    try {
      const GenerationResult result = chat.ask(line, print_text);
      std::printf("%s\n", result.last.finish == FinishReason::kCancelled ? " (stopped)" : "");
      if (show_statistics) std::printf("\033[2m%s\033[0m\n", statistics(result.last).c_str());
    } catch (const Error& e) {  // a conversation survives a message that is too long
      std::fprintf(stderr, "%s\n", e.what());
    }
  }
  std::printf("\n");
}

void chat(const ChatFlags& flags) {
  std::string text =
      flags.prompt_file.empty() ? flags.prompt : read_file(flags.prompt_file, size_t{64} << 20);
  for (const std::string& word : flags.words) text += (text.empty() ? "" : " ") + word;
  const bool first = launched_rank().value_or(0) == 0;  // mpirun gives standard input to no other
  if (first && ::isatty(STDIN_FILENO) == 0) {
    const std::string piped(std::istreambuf_iterator<char>(std::cin), {});
    if (!piped.empty()) text += (text.empty() ? "" : "\n\n") + piped;
    if (text.empty())
      throw_error(ErrorKind::kInvalidInput, "nothing to ask: no message given and standard input is empty");
  }
  if (text.empty()) {
    converse(flags);
  } else {
    answer_once(flags, text);
  }
}

}  // namespace

void add_chat_command(CLI::App& app) {
  const auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = app.add_subcommand("chat", "Talk to a model: one question, a pipe, or a conversation");
  command->add_option("message", flags->words, "The message; without one, a conversation at the terminal")
      ->type_name("TEXT");
  command->add_option("-p,--prompt", flags->prompt, "The message, as a flag")->type_name("TEXT");
  command->add_option("-f,--file", flags->prompt_file, "Read the message from a file")
      ->excludes("--prompt")
      ->type_name("FILE");
  command->add_option("--system-prompt,--system", flags->system, "System prompt (-sys too)")
      ->type_name("TEXT");
  command
      ->add_option("--set", flags->variables,
                   "A variable of the chat template: KEY=JSON, as in enable_thinking=false")
      ->type_name("KEY=JSON");
  add_model_flags(*command, flags->model);
  add_adapter_flag(*command, flags->model);
  add_sampling_flags(*command, flags->sampling);
  command->add_flag("--json", flags->json,
                    "Print one JSON object: text, tokens, finish_reason, usage, timings");
  command->footer(
      "Examples:\n"
      "  qiao chat \"Why is the sky blue?\"\n"
      "  qiao chat -m qwen2.5-coder-1.5b\n"
      "  cat main.cc | qiao chat -m qwen2.5-coder-1.5b \"What does this program do?\"");
  command->callback([flags] { chat(*flags); });
}

}  // namespace qiao::cli
