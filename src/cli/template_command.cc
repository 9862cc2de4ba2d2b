#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_argument.h"
#include "formats/model_files.h"
#include "text/chat_template.h"
#include "text/chat_variables.h"
#include "text/tokenizer.h"

namespace qiao::cli {
namespace {

struct TemplateFlags {
  std::string model, file, name, messages, tools, documents;
  std::optional<std::string> bos_token, eos_token;
  std::vector<std::string> variables;
  int64_t now = -1;
  bool add_generation_prompt = false;
  bool lines = false;
};

struct Source {
  std::string text;
  std::string where;
  Json special_tokens = Json::object();
};

Source read_source(const TemplateFlags& flags) {
  if (!flags.file.empty()) return {read_file(flags.file, TemplateLimits().max_source_bytes), flags.file, {}};
  const auto model = ModelFiles::open(resolve_model(flags.model, /*may_pull=*/true),
                                      {.need_weights = false, .need_usable = false});
  Source source{model->chat_template(flags.name), model->path().string() + ": chat template", Json::object()};
  if (source.text.empty()) {
    throw_error(ErrorKind::kNotFound, "{}: the model has no chat template", model->path().string());
  }
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::from_model(*model);
  const auto add = [&](const char* name, std::optional<TokenId> id) {
    if (id) source.special_tokens[name] = tokenizer->token_bytes(*id);
  };
  add("bos_token", tokenizer->bos());
  add("eos_token", tokenizer->eos());
  add("pad_token", tokenizer->pad());
  return source;
}

Json read_json(const std::string& path) {
  if (path == "-") {
    const std::string text((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
    return parse_json(text, "standard input");
  }
  return parse_json(read_file(path), path);
}

Json read_variables(const TemplateFlags& flags, const Source& source) {
  Json variables = source.special_tokens;
  if (!variables.is_object()) variables = Json::object();
  if (flags.bos_token) variables["bos_token"] = *flags.bos_token;
  if (flags.eos_token) variables["eos_token"] = *flags.eos_token;
  variables["messages"] = read_json(flags.messages);
  if (!flags.tools.empty()) variables["tools"] = read_json(flags.tools);
  if (!flags.documents.empty()) variables["documents"] = read_json(flags.documents);
  variables["add_generation_prompt"] = flags.add_generation_prompt;
  for (const std::string& variable : flags.variables) {
    const size_t equals = variable.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw_error(ErrorKind::kInvalidInput, "--set {}: expected KEY=JSON", variable);
    }
    variables[variable.substr(0, equals)] = parse_json(variable.substr(equals + 1), "--set " + variable);
  }
  return complete_chat_variables(std::move(variables));
}

// One render for each line of standard input; a line that fails answers with its error.
void render_lines(const TemplateFlags& flags) {
  std::optional<ChatTemplate> source;
  std::string line;
  for (size_t number = 1; std::getline(std::cin, line); ++number) {
    Json answer = Json::object();
    try {
      const Json request = parse_json(line, fmt::format("line {}", number));
      if (!request.is_object() || !request.contains("variables") || !request["variables"].is_object()) {
        throw_error(ErrorKind::kInvalidInput,
                    "line {}: expected {{\"template\": TEXT, \"variables\": OBJECT}}", number);
      }
      if (request.contains("template")) {
        source.reset();
        source.emplace(request["template"].get<std::string>());
      }
      if (!source)
        throw_error(ErrorKind::kInvalidInput, "line {}: no template, nor a line before that gives one",
                    number);
      Json variables = request["variables"];
      if (variables.contains("messages")) variables = complete_chat_variables(std::move(variables));
      answer["text"] = source->render(variables, flags.now);
    } catch (const Error& e) {
      answer["error"] = e.what();
    } catch (const Json::exception&) {
      answer["error"] = fmt::format("line {}: the template is not a text", number);
    }
    const std::string out = dump_json(answer) + "\n";
    std::fwrite(out.data(), 1, out.size(), stdout);
  }
}

void print_template(const TemplateFlags& flags) {
  if (flags.lines) return render_lines(flags);
  if (flags.messages.empty()) throw CLI::RequiredError("--messages");
  if (flags.file.empty() == flags.model.empty()) throw CLI::RequiredError("One of --model and --file");
  const Source source = read_source(flags);
  const std::string text =
      ChatTemplate(source.text, source.where).render(read_variables(flags, source), flags.now);
  std::fwrite(text.data(), 1, text.size(), stdout);
}

}  // namespace

void add_template_command(CLI::App& app) {
  const auto flags = std::make_shared<TemplateFlags>();
  CLI::App* command = app.add_subcommand("template", "Show the text that a chat template makes of messages");
  command->add_option("-m,--model", flags->model, kModelHelp)->type_name("MODEL");
  command->add_option("--file", flags->file, "A Jinja chat template, in place of a model's")
      ->type_name("FILE");
  command->add_option("--name", flags->name, "Of a model with several templates, this one, as in tool_use");
  command->add_option("--messages", flags->messages, "Messages: a file of JSON, - for standard input")
      ->type_name("FILE");
  command->add_option("--tools", flags->tools, "Tools: a file of JSON")->type_name("FILE");
  command->add_option("--documents", flags->documents, "Documents: a file of JSON")->type_name("FILE");
  command->add_flag("--add-generation-prompt", flags->add_generation_prompt,
                    "End with what opens the assistant's answer");
  command->add_option("--bos-token", flags->bos_token,
                      "Text of the token that begins a sequence, in place of the model's");
  command->add_option("--eos-token", flags->eos_token,
                      "Text of the token that ends a sequence, in place of the model's");
  command->add_option("--set", flags->variables, "Another variable: KEY=JSON, as in enable_thinking=false")
      ->type_name("KEY=JSON")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("--now", flags->now,
                      "Seconds since 1970 that the template takes for now (default: the clock)");
  command->add_flag(
      "--lines", flags->lines,
      "Render each line of standard input, {\"template\": TEXT, \"variables\": OBJECT}, and answer with a "
      "line: {\"text\": TEXT} or {\"error\": MESSAGE}; without a template, the line before's is taken");
  command->callback([flags] { print_template(*flags); });
  command->footer(
      "Examples:\n"
      "  qiao template -m smollm2 --messages chat.json --add-generation-prompt\n"
      "  qiao template --file chat.jinja --messages chat.json --tools tools.json --bos-token '<s>'\n"
      "  echo '[{\"role\": \"user\", \"content\": \"Hi\"}]' | qiao template -m smollm2 --messages - --set "
      "enable_thinking=false");
}

}  // namespace qiao::cli
