#include <cstdio>
#include <future>
#include <iostream>

#include "base/error.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_argument.h"
#include "cli/model_flags.h"
#include "infer/encoder_engine.h"

namespace qiao::cli {
namespace {

constexpr size_t kEmbedBatch = 256;  // texts handed over at once

struct EmbedFlags {
  ModelFlags model;
  std::vector<std::string> texts;
};

void print_embeddings(EncoderEngine& engine, std::vector<EncoderInput> inputs) {
  std::promise<EncoderOutcome> promise;
  engine.submit(std::move(inputs), [&](const EncoderOutcome& outcome) { promise.set_value(outcome); });
  const EncoderOutcome outcome = promise.get_future().get();
  if (outcome.finish != FinishReason::kStop) throw_error(ErrorKind::kIo, "{}", outcome.error);
  for (const std::vector<float>& vector : outcome.vectors) {
    const std::string line = dump_json(Json(vector)) + "\n";
    std::fwrite(line.data(), 1, line.size(), stdout);
  }
}

void embed(EmbedFlags flags) {
  if (flags.model.model.empty()) flags.model.model = "minilm";
  const std::filesystem::path path = resolve_model(flags.model.model, !flags.model.no_pull);
  if (!EmbeddingModel::is_at(path)) {
    throw_error(ErrorKind::kUnsupported, "{}: is not an embedding model; `qiao embed -m minilm` uses one",
                path.string());
  }
  const auto model = load_embedding_model(flags.model, path);
  EncoderEngine engine(model);
  std::vector<EncoderInput> inputs;
  const auto add = [&](std::string_view text) {
    inputs.push_back(model->encode(text));
    model->truncate(inputs.back(), model->max_tokens());
    if (inputs.size() == kEmbedBatch) print_embeddings(engine, std::exchange(inputs, {}));
  };
  if (flags.texts.empty() || (flags.texts.size() == 1 && flags.texts[0] == "-")) {
    for (std::string line; std::getline(std::cin, line);) add(line);
  } else {
    for (const std::string& text : flags.texts) add(text);
  }
  if (!inputs.empty()) print_embeddings(engine, std::move(inputs));
}

}  // namespace

void add_embed_command(CLI::App& app) {
  const auto flags = std::make_shared<EmbedFlags>();
  CLI::App* command = app.add_subcommand("embed", "Print the embeddings of texts, one JSON list a line");
  add_model_flags(*command, flags->model);
  command->add_option("text", flags->texts, "Texts, cut at the model's length; none or -: each line of stdin")
      ->type_name("TEXT");
  command->footer(
      "Examples:\n"
      "  qiao embed \"The weather is lovely today.\"\n"
      "  qiao embed -m minilm - < sentences.txt > vectors.jsonl");
  command->callback([flags] { embed(*flags); });
}

}  // namespace qiao::cli
