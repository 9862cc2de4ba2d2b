#include <cctype>
#include <charconv>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "base/quote.h"
#include "cli/commands.h"
#include "cli/model_argument.h"
#include "formats/model_files.h"
#include "text/tokenizer.h"

namespace qiao::cli {
namespace {

struct TokenizeFlags {
  std::string model;
  bool special = false;
  bool plain = false;
  bool json = false;
  bool decode = false;
};

std::string read_standard_input() {
  return std::string((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
}

// Numbers apart by spaces, commas or a JSON list's brackets.
std::vector<TokenId> parse_ids(const std::string& text, int64_t vocabulary) {
  std::vector<TokenId> ids;
  const char* at = text.data();
  const char* end = at + text.size();
  while (at != end) {
    if (std::isspace(static_cast<unsigned char>(*at)) || *at == ',' || *at == '[' || *at == ']') {
      ++at;
      continue;
    }
    TokenId id = -1;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || id < 0 || id >= vocabulary) {
      throw_error(ErrorKind::kInvalidInput, "standard input: byte {}: {} is not a token id under {}",
                  at - text.data(), quote_text(std::string_view(at, static_cast<size_t>(end - at)), 20),
                  vocabulary);
    }
    ids.push_back(id);
    at = next;
  }
  return ids;
}

void tokenize(const TokenizeFlags& flags) {
  const auto files = ModelFiles::open(resolve_model(flags.model, /*may_pull=*/true),
                                      {.need_weights = false, .need_usable = false});
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::from_model(*files);
  const std::string input = read_standard_input();
  std::string out;
  if (flags.decode) {
    out = tokenizer->decode(parse_ids(input, tokenizer->vocabulary_size()), !flags.special);
    if (flags.json) out = dump_json(Json(out)) + "\n";
  } else {
    EncodeOptions options;
    options.add_special = flags.special;
    options.parse_special = !flags.plain;
    const std::vector<TokenId> ids = tokenizer->encode(input, options);
    if (flags.json) {
      out = dump_json(Json(ids));
    } else {
      out = fmt::format("{}", fmt::join(ids, " "));
    }
    out += "\n";
  }
  std::fwrite(out.data(), 1, out.size(), stdout);
}

}  // namespace

void add_tokenize_command(CLI::App& app) {
  const auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* command =
      app.add_subcommand("tokenize", "Turn standard input into token ids, or ids back into text");
  command->add_option("-m,--model", flags->model, kModelHelp)->type_name("MODEL");
  command->add_flag(
      "--special", flags->special,
      "Add the tokens that begin and end a text for this model (BOS, EOS); with --decode, show them");
  command->add_flag("--plain", flags->plain, "Read \"<|im_end|>\" and its kind in the text as ordinary text");
  command->add_flag("--json", flags->json, "Print a JSON list of numbers (with --decode, a JSON string)");
  command->add_flag("--decode", flags->decode, "Read token ids, print the text that they stand for");
  command->callback([flags] { tokenize(*flags); });
  command->footer(
      "Examples:\n"
      "  printf 'Why is the sky blue?' | qiao tokenize -m smollm2\n"
      "  qiao tokenize -m qwen2.5-coder-1.5b --json < main.cc\n"
      "  qiao tokenize -m some/tokenizer.json --special < prompt.txt\n"
      "  echo '9707 1879' | qiao tokenize -m qwen2.5-coder-1.5b --decode");
}

}  // namespace qiao::cli
