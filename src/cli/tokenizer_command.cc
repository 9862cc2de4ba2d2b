#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "base/units.h"
#include "cli/commands.h"
#include "formats/json_lines.h"
#include "text/bpe_trainer.h"
#include "text/chat_template.h"

namespace qiao::cli {
namespace {

namespace fs = std::filesystem;
using tokenization::BpeTrainerOptions;
using tokenization::WordCounts;

constexpr int64_t kMostBadLines = 100;

struct TokenizerFlags {
  BpeTrainerOptions options;
  std::vector<fs::path> data;
  std::string eos, chat_template;
  fs::path out;
  bool no_special = false;
};

// What a share of a file's lines gave.
struct CountedLines {
  explicit CountedLines(std::string_view pre_tokenizer) : words(pre_tokenizer) {}
  WordCounts words;
  std::vector<std::pair<size_t, std::string>> bad;  // byte, what was expected
};

// The text of a line: a row's "text", or the line with its end. Empty and `why` set where there is none.
std::string text_of_line(std::string_view line, bool is_json, std::string& why) {
  if (!is_json) {
    if (tokenization::utf8_valid(line)) return std::string(line);
    why = "UTF-8 was expected";
    return {};
  }
  if (is_blank_line(line)) return {};
  try {
    const Json row = parse_json_line(line);
    const auto text = row.is_object() ? row.find("text") : row.end();
    if (text != row.end() && text->is_string()) return text->get<std::string>();
    why = R"("text" (a string) was expected)";
  } catch (const Error& error) {
    why = error.what();
  }
  return {};
}

void count_lines(std::string_view text, size_t begin, size_t end, bool is_json, CountedLines& counted) {
  while (begin < end) {
    const size_t found = text.find('\n', begin);
    const size_t next = found == std::string_view::npos ? text.size() : found + 1;
    std::string why;
    counted.words.add(text_of_line(text.substr(begin, next - begin), is_json, why));
    if (!why.empty()) counted.bad.emplace_back(begin, why);
    begin = next;
  }
}

// Adds the words of a file; its lines are shared among threads, whose counts only add up.
void count_file(const fs::path& path, std::string_view pre_tokenizer, WordCounts& words, int64_t& bad) {
  const MappedFile file = MappedFile::open(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.size());
  const bool is_json = path.extension() == ".jsonl" || path.extension() == ".json";
  const auto threads = static_cast<size_t>(usable_cpus());
  std::vector<CountedLines> counted;
  for (size_t i = 0; i < threads; ++i) counted.emplace_back(pre_tokenizer);
  const auto line_after = [&](size_t at) {  // where the line begins that begins at `at` or after it
    if (at == 0 || at >= text.size()) return std::min(at, text.size());
    const size_t found = text.find('\n', at - 1);
    return found == std::string_view::npos ? text.size() : found + 1;
  };
  {
    std::vector<std::jthread> workers;
    for (size_t i = 0; i < threads; ++i) {
      const size_t begin = i == 0 && is_json ? byte_order_mark(text) : line_after(text.size() / threads * i);
      const size_t end = i + 1 == threads ? text.size() : line_after(text.size() / threads * (i + 1));
      workers.emplace_back([&, i, begin, end] { count_lines(text, begin, end, is_json, counted[i]); });
    }
  }
  for (const CountedLines& share : counted) {
    words.add(share.words);
    for (const auto& [byte, why] : share.bad) {
      const auto line = std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(byte), '\n') + 1;
      const std::string told = fmt::format("{}:{}: {}; the line is skipped", path.string(), line, why);
      if (++bad > kMostBadLines)
        throw_error(ErrorKind::kInvalidInput, "{}; {} bad lines are too many", told, bad);
      std::fputs(fmt::format("warning: {}\n", told).c_str(), stderr);
    }
  }
}

Json tokenizer_config(const TokenizerFlags& flags) {
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"clean_up_tokenization_spaces", false},
                 {"model_max_length", int64_t{1} << 30}};
  if (!flags.eos.empty()) config["eos_token"] = flags.eos;
  return config;
}

void train_tokenizer(TokenizerFlags flags) {
  if (flags.options.special.empty() && !flags.no_special) flags.options.special = {"<|endoftext|>"};
  const std::vector<std::string>& special = flags.options.special;
  if (flags.eos.empty() && !special.empty()) flags.eos = special.front();
  if (!flags.eos.empty() && std::ranges::find(special, flags.eos) == special.end()) {
    throw_error(ErrorKind::kInvalidInput, "--eos is {}; one of the --special tokens was expected ({})",
                flags.eos, fmt::join(special, ", "));
  }
  std::string chat;
  if (!flags.chat_template.empty()) {
    chat = read_regular_file(flags.chat_template, TemplateLimits{}.max_source_bytes);
    const ChatTemplate checked(chat, flags.chat_template);
  }
  WordCounts words(flags.options.pre_tokenizer);
  int64_t bad = 0;
  for (const fs::path& path : flags.data) count_file(path, flags.options.pre_tokenizer, words, bad);
  if (words.words().empty())
    throw_error(ErrorKind::kInvalidInput, "--data: {} holds no text", flags.data.front().string());
  const tokenization::TrainedBpe bpe = train_bpe(words, flags.options);
  std::error_code error;
  fs::create_directories(flags.out, error);
  if (error)
    throw_error(ErrorKind::kIo, "{}: cannot make the folder: {}", flags.out.string(), error.message());
  write_file_atomically(flags.out / "tokenizer.json",
                        dump_json(bpe_tokenizer_json(bpe, flags.options)) + "\n");
  write_file_atomically(flags.out / "tokenizer_config.json", dump_json(tokenizer_config(flags), 2) + "\n");
  if (!chat.empty()) write_file_atomically(flags.out / "chat_template.jinja", chat);
  std::fputs(fmt::format("{}: {} tokens from {} different words\n", (flags.out / "tokenizer.json").string(),
                         bpe.tokens.size(), format_count(words.words().size()))
                 .c_str(),
             stderr);
  if (std::ssize(bpe.tokens) < flags.options.vocabulary_size) {
    std::fputs(fmt::format("warning: --vocab-size is {}, and the text has words for {} tokens\n",
                           flags.options.vocabulary_size, bpe.tokens.size())
                   .c_str(),
               stderr);
  }
}

}  // namespace

void add_tokenizer_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("tokenizer", "Make a tokenizer of one's own");
  command->require_subcommand(1);
  command->footer(
      "Examples:\n"
      "  qiao tokenizer train --data texts.jsonl --vocab-size 8192 --out DIR\n"
      "  qiao tokenizer train --help");
  const auto flags = std::make_shared<TokenizerFlags>();
  CLI::App* train = command->add_subcommand("train", "Learn a byte-level BPE tokenizer from texts");
  train
      ->add_option(
          "--data", flags->data,
          R"(JSON Lines (*.jsonl) with rows of {"text": "…"}, or plain text, which is read line by line)")
      ->required()
      ->type_name("FILE");
  train
      ->add_option("--vocab-size", flags->options.vocabulary_size,
                   "Tokens in all: special ones, the 256 bytes, and what is merged [32000]")
      ->type_name("N");
  train
      ->add_option("--special", flags->options.special,
                   "Tokens that no text makes: the first ids, in order [<|endoftext|>]")
      ->type_name("TOKEN");
  train->add_flag("--no-special", flags->no_special, "No special token at all");
  train->add_option("--eos", flags->eos, "The special token that ends a text; empty: the first")
      ->type_name("TOKEN");
  train
      ->add_option("--pre-tokenizer", flags->options.pre_tokenizer,
                   "How texts are cut into words: llama3 or gpt2 [llama3]")
      ->check(CLI::IsMember({"llama3", "gpt2"}))
      ->type_name("NAME");
  train
      ->add_option("--min-frequency", flags->options.min_frequency, "Pairs that are rarer are not merged [0]")
      ->type_name("N");
  train
      ->add_option("--chat-template", flags->chat_template,
                   "Jinja template that is kept beside the tokenizer")
      ->type_name("FILE");
  train->add_option("--out", flags->out, "Folder for tokenizer.json and tokenizer_config.json")
      ->required()
      ->type_name("DIR");
  train->footer(
      "The same data gives the same tokenizer, and the one that the tokenizers library's trainer gives.\n"
      "A config.json beside it, and `qiao train pretrain --init DIR` begins a model from nothing.\n"
      "Examples:\n"
      "  qiao tokenizer train --data texts.jsonl --vocab-size 8192 --out DIR\n"
      "  qiao tokenizer train --data book.txt --vocab-size 4096 --special \"<|endoftext|>\" --special "
      "\"<|im_end|>\"\n"
      "      --pre-tokenizer gpt2 --out DIR\n"
      "  echo 'Why is the sky blue?' | qiao tokenize -m DIR/tokenizer.json");
  train->callback([flags] { train_tokenizer(*flags); });
}

}  // namespace qiao::cli
