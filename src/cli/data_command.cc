#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/quote.h"
#include "cli/commands.h"
#include "formats/model_files.h"
#include "models/config.h"
#include "train/open_data.h"

namespace qiao::cli {
namespace {

struct DataFlags {
  train::TrainOptions options;
  std::string shuffle = "on";
  bool json = false;
};

// What a batch shows of one of its documents.
struct ShownDocument {
  std::string part;  // of a pair: chosen, rejected
  std::span<const int32_t> tokens;
  std::vector<bool> learned;  // by token

  int64_t learned_count() const { return std::ranges::count(learned, true); }
};

std::string shown_text(const std::string& bytes) {
  std::string text;
  for (const char c : bytes) {
    if (c == ' ') {
      text += "·";
    } else if (c == '\n') {
      text += "\\n";
    } else {
      text += c;
    }
  }
  return printable(text, 200);
}

class BatchInspector {
 public:
  explicit BatchInspector(const DataFlags& flags) : flags_(flags), options_(flags.options) {
    options_.data.shuffle = flags.shuffle == "on";
    files_ = ModelFiles::open(options_.init, {.need_weights = false, .need_usable = false});
    if (files_->kind() != ModelFiles::Kind::kHuggingFace || !files_->tokenizer_json().is_null())
      tokenizer_ = Tokenizer::from_model(*files_);
    data_ =
        train::open_data(options_, *files_, tokenizer_.get(), read_decoder_config(*files_).vocabulary_size,
                         [](const std::string& text) { fmt::print(stderr, "warning: {}\n", text); });
    batch_ = options_.mode == "dpo" ? data_->next_rows(options_.batch) : data_->next(options_.batch);
  }

  void print() const { flags_.json ? print_json() : print_text(); }

 private:
  // Documents of the sequence, in order.
  std::vector<ShownDocument> documents_of(size_t sequence) const {
    std::vector<ShownDocument> documents;
    for (size_t i = 0; i + 1 < batch_.starts.size(); ++i) {
      const int32_t begin = batch_.starts[i], end = batch_.starts[i + 1];
      if (begin < batch_.sequences[sequence] || begin >= batch_.sequences[sequence + 1]) continue;
      ShownDocument document;
      if (options_.mode == "dpo") document.part = i % 2 == 0 ? "chosen" : "rejected";
      document.tokens =
          std::span(batch_.tokens).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
      document.learned.push_back(false);
      for (int32_t at = begin; at + 1 < end; ++at)
        document.learned.push_back(batch_.labels[static_cast<size_t>(at)] >= 0);
      documents.push_back(std::move(document));
    }
    return documents;
  }

  size_t sequences() const { return batch_.sequences.size() - 1; }
  int64_t room() const { return static_cast<int64_t>(sequences()) * options_.data.sequence; }
  static double share(int64_t part, int64_t whole) {
    return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
  }

  void print_text() const {
    const bool colours = ::isatty(STDOUT_FILENO) != 0;
    const int64_t tokens = std::ssize(batch_.tokens);
    for (size_t i = 0; i < sequences(); ++i) {
      const std::vector<ShownDocument> documents = documents_of(i);
      fmt::print("sequence {}: {} of {} tokens, {} document{}\n", i + 1,
                 batch_.sequences[i + 1] - batch_.sequences[i], options_.data.sequence, documents.size(),
                 documents.size() == 1 ? "" : "s");
      for (size_t d = 0; d < documents.size(); ++d) {
        fmt::print("  document {}{}: {} tokens, {} with loss\n", d + 1,
                   documents[d].part.empty() ? "" : " (" + documents[d].part + ")",
                   documents[d].tokens.size(), documents[d].learned_count());
        print_tokens(documents[d], colours);
      }
    }
    fmt::print(
        "batch: {} tokens of {} ({:.1f}% empty), {} documents, {} tokens with loss ({:.1f}%); data: {} rows, "
        "{} bad so far\n",
        tokens, room(), 100 * share(room() - tokens, room()), batch_.starts.size() - 1, batch_.labelled,
        100 * share(batch_.labelled, tokens), data_->rows(), data_->bad_rows());
    fmt::print("{}: a token with its id; {} carries loss\n", "text/id",
               colours ? "\033[32mgreen\033[0m" : "[text/id]");
  }

  void print_tokens(const ShownDocument& document, bool colours) const {
    constexpr size_t kWidth = 100;
    size_t column = kWidth;
    for (size_t i = 0; i < document.tokens.size(); ++i) {
      std::string text =
          fmt::format("{}/{}", tokenizer_ ? shown_text(tokenizer_->token_bytes(document.tokens[i])) : "",
                      document.tokens[i]);
      if (!colours && document.learned[i]) text = "[" + text + "]";
      const size_t width = text.size() + 1;
      if (column + width > kWidth) {
        fmt::print("{}    ", i == 0 ? "" : "\n");
        column = 4;
      }
      column += width;
      if (colours) text = fmt::format("\033[{}m{}\033[0m", document.learned[i] ? 32 : 2, text);
      fmt::print("{} ", text);
    }
    fmt::print("\n");
  }

  void print_json() const {
    Json out = {{"mode", options_.mode},
                {"rows", data_->rows()},
                {"bad_rows", data_->bad_rows()},
                {"sequence", options_.data.sequence},
                {"tokens", batch_.tokens.size()},
                {"documents", batch_.starts.size() - 1},
                {"tokens_with_loss", batch_.labelled},
                {"share_empty", share(room() - std::ssize(batch_.tokens), room())},
                {"share_with_loss", share(batch_.labelled, std::ssize(batch_.tokens))},
                {"sequences", Json::array()}};
    for (size_t i = 0; i < sequences(); ++i) {
      Json list = Json::array();
      for (const ShownDocument& document : documents_of(i)) {
        Json shown = Json::object();
        if (!document.part.empty()) shown["part"] = document.part;
        shown["tokens"] = document.tokens;
        Json texts = Json::array();
        for (const int32_t token : document.tokens)
          texts.push_back(tokenizer_ ? tokenizer_->token_bytes(token) : "");
        shown["texts"] = std::move(texts);
        shown["loss"] = document.learned;
        list.push_back(std::move(shown));
      }
      out["sequences"].push_back({{"documents", std::move(list)}});
    }
    fmt::print("{}\n", dump_json(out));
  }

  const DataFlags& flags_;
  train::TrainOptions options_;
  std::shared_ptr<ModelFiles> files_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<train::DataStream> data_;
  train::TokenBatch batch_;
};

void inspect_data(const DataFlags& flags) {
  const train::TrainOptions& o = flags.options;
  if (o.data.sequence < 2 || o.batch < 1 || o.data.sequence > INT32_MAX / o.batch)
    throw_error(ErrorKind::kInvalidInput,
                "--seq is {} and --batch {}: at least 2 and 1, and fewer than 2^31 tokens were expected",
                o.data.sequence, o.batch);
  BatchInspector(flags).print();
}

}  // namespace

void add_data_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("data", "Look at the data of training");
  command->require_subcommand(1);
  const auto flags = std::make_shared<DataFlags>();
  train::TrainOptions& o = flags->options;
  o.batch = 2;
  CLI::App* inspect = command->add_subcommand(
      "inspect", "Show a packed batch: sequences, documents, tokens, and which of them carry loss");
  inspect->add_option("--init", o.init, "Hugging Face directory whose tokenizer and chat template are taken")
      ->required()
      ->type_name("DIR");
  inspect->add_option("--data", o.data.files, "Files of rows, texts or folders, as `qiao train` takes them")
      ->required()
      ->type_name("FILE");
  inspect->add_option("--mode", o.mode, "What rows are read as: pretrain, finetune or dpo [pretrain]")
      ->check(CLI::IsMember({"pretrain", "finetune", "dpo"}))
      ->type_name("NAME");
  inspect
      ->add_option("--chat-template", o.chat_template,
                   "Jinja file that conversations are written by, in place of the model's own template")
      ->type_name("FILE");
  inspect->add_option("--seq", o.data.sequence, "Tokens of a sequence [512]")->type_name("N");
  inspect->add_option("--batch", o.batch, "Sequences, or pairs, of the batch [2]")->type_name("N");
  inspect->add_option("--seed", o.data.seed, "Seed of the rows' order [0]")->type_name("N");
  inspect
      ->add_option("--shuffle", flags->shuffle, "The order of the first epoch: on, or off: the files' [on]")
      ->check(CLI::IsMember({"on", "off"}))
      ->type_name("on|off");
  inspect->add_flag("--json", flags->json, "Print one JSON object");
  inspect->callback([flags] { inspect_data(*flags); });
  command->footer("Examples:\n  qiao data inspect --init DIR --data chats.jsonl --mode finetune");
  inspect->footer(
      "Examples:\n"
      "  qiao data inspect --init DIR --data chats.jsonl --mode finetune\n"
      "  qiao data inspect --init DIR --data texts.jsonl --seq 64 --json | jq .share_with_loss");
}

}  // namespace qiao::cli
