#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_argument.h"
#include "constrain/constraint.h"
#include "formats/model_files.h"
#include "text/tokenizer.h"

namespace qiao::cli {
namespace {

using constrain::CompiledGrammar;
using constrain::ConstraintState;
using constrain::JsonStyle;
using constrain::TokenTable;

struct ConstrainFlags {
  std::string schema, regex, grammar, model;
  bool json_object = false;
  bool generation = false;
  bool json = false;
  bool timings = false;
  std::vector<std::string> files;
};

// A file's text; "-" is standard input.
std::string text_of(const std::string& file) {
  if (file != "-") return read_file(file);
  return std::string((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
}

std::shared_ptr<CompiledGrammar> compile(const ConstrainFlags& flags) {
  const JsonStyle style = flags.generation ? JsonStyle::generation() : JsonStyle::any();
  constrain::ConstraintLimits limits;
  limits.may_be_empty = true;  // a schema that nothing satisfies rejects every file
  if (!flags.schema.empty()) {
    const Json schema =
        parse_json(text_of(flags.schema), flags.schema,
                   {.max_bytes = limits.max_source_bytes, .max_depth = limits.max_schema_depth});
    return constrain::compile_json_schema(schema, flags.schema, style, limits);
  }
  if (!flags.regex.empty()) return constrain::compile_regex(flags.regex, "--regex");
  if (!flags.grammar.empty()) return constrain::compile_grammar(text_of(flags.grammar), flags.grammar);
  return constrain::compile_json_object(style);
}

double microseconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
}

struct Verdict {
  size_t taken = 0;
  bool accepted = false;
  std::vector<double> mask_us;  // of each token whose bytes were not forced
};

// The file's tokens one by one: each must be in the mask of what came before it.
Verdict judge_tokens(ConstraintState state, const std::string& text, const Tokenizer& tokenizer,
                     const TokenTable& table, const std::string& file) {
  Verdict verdict;
  std::vector<uint32_t> mask(table.words());
  for (const TokenId id : tokenizer.encode(text, {.parse_special = false})) {
    const std::string_view bytes = table.bytes_of(id);
    if (std::string_view(text).substr(verdict.taken, bytes.size()) != bytes) {
      throw_error(ErrorKind::kUnsupported,
                  "{}: byte {}: this model's tokens are not the text's bytes one by one; leave out -m", file,
                  verdict.taken);
    }
    const bool forced = state.forced_bytes(1).size() == 1;
    const auto begin = std::chrono::steady_clock::now();
    state.mask(mask);
    if (!forced) verdict.mask_us.push_back(microseconds_since(begin));
    const bool allowed = (mask[static_cast<size_t>(id) / 32] >> (static_cast<uint32_t>(id) % 32) & 1) != 0;
    ConstraintState before = state;
    QIAO_ASSERT(state.accept_token(id) == allowed);
    if (!allowed) {
      verdict.taken += before.accept_bytes(bytes);
      return verdict;
    }
    verdict.taken += bytes.size();
  }
  verdict.accepted = state.can_end();
  return verdict;
}

void run_constrain(const ConstrainFlags& flags) {
  if (static_cast<int>(!flags.schema.empty()) + !flags.regex.empty() + !flags.grammar.empty() +
          flags.json_object !=
      1) {
    throw CLI::ValidationError("expected one of --schema, --regex, --grammar and --json-object");
  }
  if (flags.timings && (flags.model.empty() || !flags.json)) {
    throw CLI::ValidationError("--timings needs --model and --json");
  }
  std::shared_ptr<CompiledGrammar> grammar;
  double compile_us = 0;
  try {
    const auto begin = std::chrono::steady_clock::now();
    grammar = compile(flags);
    compile_us = microseconds_since(begin);
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::kNotFound || e.kind() == ErrorKind::kIo) throw;
    std::fputs(fmt::format("qiao: {}\n", e.what()).c_str(), stderr);
    throw CLI::RuntimeError(kExitUsage);
  }
  std::unique_ptr<Tokenizer> tokenizer;
  std::shared_ptr<const TokenTable> table;
  if (!flags.model.empty()) {
    const auto model = ModelFiles::open(resolve_model(flags.model, /*may_pull=*/true),
                                        {.need_weights = false, .need_usable = false});
    tokenizer = Tokenizer::from_model(*model);
    table = std::make_shared<TokenTable>(*tokenizer);
  }
  bool all = true;
  Json results = Json::array();
  for (const std::string& file : flags.files) {
    const std::string text = text_of(file);
    ConstraintState state(grammar, table);
    Verdict verdict;
    if (table != nullptr) {
      verdict = judge_tokens(state, text, *tokenizer, *table, file);
    } else {
      verdict.taken = state.accept_bytes(text);
      verdict.accepted = verdict.taken == text.size() && state.can_end();
    }
    all = all && verdict.accepted;
    const std::string said =
        verdict.accepted ? "accepted" : fmt::format("rejected at byte {}", verdict.taken);
    if (flags.json) {
      Json result{{"file", file}, {"accepted", verdict.accepted}};
      if (!verdict.accepted) result["byte"] = verdict.taken;
      if (flags.timings) {
        result["compile_us"] = compile_us;
        result["mask_us"] = verdict.mask_us;
      }
      results.push_back(std::move(result));
    } else if (flags.files.size() == 1) {
      fmt::print("{}\n", said);
    } else {
      fmt::print("{}: {}\n", file, said);
    }
  }
  if (flags.json) fmt::print("{}\n", dump_json(results, 2));
  if (!all) throw CLI::RuntimeError(kExitFailure);
}

}  // namespace

void add_constrain_command(CLI::App& app) {
  const auto flags = std::make_shared<ConstrainFlags>();
  CLI::App* command =
      app.add_subcommand("constrain", "Say whether files hold to a schema, expression or grammar");
  command->add_option("--schema", flags->schema, "A JSON Schema (drafts 4 to 2020-12); - is standard input")
      ->type_name("FILE");
  command->add_option("--regex", flags->regex, "A regular expression that the whole text matches")
      ->type_name("REGEX");
  command
      ->add_option("--grammar", flags->grammar,
                   "A grammar in GBNF or W3C's EBNF; its rule root, or else the first, derives the text")
      ->type_name("FILE");
  command->add_flag("--json-object", flags->json_object, "Any JSON object");
  command->add_flag(
      "--generation", flags->generation,
      "Take JSON only as the server lets models write it: json.dumps' spaces, the schema's order");
  command->add_option("-m,--model", flags->model, "Go token by token of this model, as generation does")
      ->type_name("MODEL");
  command->add_flag("--json", flags->json, "Print a list of objects: file, accepted, byte");
  command->add_flag(
      "--timings", flags->timings,
      "With --model and --json: microseconds of compiling, and of each token's mask that was not forced");
  command->add_option("file", flags->files, "What to judge; - is standard input")
      ->required()
      ->type_name("FILE");
  command->callback([flags] { run_constrain(*flags); });
  command->footer(
      "Prints for each FILE \"accepted\" or \"rejected at byte N\". Exit code: 0 all accepted, 1 some "
      "rejected, 2 the\n"
      "constraint is malformed or not supported (the keyword is named).\n"
      "Examples:\n"
      "  qiao constrain --schema person.json answer.json\n"
      "  qiao constrain --regex '[0-9]{4}-[0-9]{2}' date.txt\n"
      "  qiao constrain --grammar chess.gbnf -m smollm2 game.txt");
}

}  // namespace qiao::cli
