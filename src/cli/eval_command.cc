#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/commands.h"
#include "cli/generation_runner.h"
#include "cli/model_flags.h"
#include "eval/runner.h"
#include "eval/task.h"

namespace qiao::cli {
namespace {

constexpr int64_t kMostContext = 8192;  // where -c is not given
constexpr int64_t kScoredRows = 128;    // of logits at once
constexpr int kInterrupted = 130;

struct EvalFlags {
  ModelFlags model;
  eval::EvalOptions options;
  std::vector<std::string> texts, choices, exact, stop;
  std::string add_bos = "auto", samples;
  int64_t slots = 16;
  bool with_base = false, json = false;
};

struct EvalJob {
  std::string label;
  std::unique_ptr<eval::Task> task;
};

// Where each row's outcome goes.
class SamplesFile {
 public:
  explicit SamplesFile(const std::string& path) : path_(path) {
    if (path.empty()) return;
    file_ = std::fopen(path.c_str(), "w");
    if (file_ == nullptr) throw_error(ErrorKind::kIo, "--samples {}: {}", path, std::strerror(errno));
  }
  ~SamplesFile() {
    if (file_ != nullptr) std::fclose(file_);
  }
  SamplesFile(const SamplesFile&) = delete;
  SamplesFile& operator=(const SamplesFile&) = delete;

  bool wanted() const { return file_ != nullptr; }
  void write(const std::vector<Json>& samples) {
    for (const Json& sample : samples) {
      const std::string line = dump_json(sample) + "\n";
      if (std::fwrite(line.data(), 1, line.size(), file_) != line.size()) fail();
    }
    if (file_ != nullptr && std::fflush(file_) != 0) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw_error(ErrorKind::kIo, "--samples {}: {}", path_, std::strerror(errno));
  }
  std::string path_;
  std::FILE* file_ = nullptr;
};

std::vector<EvalJob> read_jobs(const EvalFlags& flags, const LanguageModel& model,
                               const eval::EvalOptions& options) {
  const eval::Warn warn = [](const std::string& line) {
    std::fputs(fmt::format("warning: {}\n", line).c_str(), stderr);
  };
  std::vector<EvalJob> jobs;
  for (const std::string& file : flags.texts)
    jobs.push_back({file, eval::read_text_task(file, model, options, warn)});
  for (const std::string& file : flags.choices)
    jobs.push_back({file, eval::read_choice_task(file, model, options, warn)});
  for (const std::string& file : flags.exact)
    jobs.push_back({file, eval::read_exact_task(file, model, options, warn)});
  return jobs;
}

Json to_json(const eval::TaskResult& result) {
  Json json = {{"task", result.kind}, {"file", result.file}};
  json["adapter"] = result.adapter.empty() ? Json(nullptr) : Json(result.adapter);
  for (const eval::Metric& metric : result.metrics) {
    json[metric.name] = metric.value;
    if (result.kind != "text")
      json[metric.name + "_stderr"] = metric.standard_error ? Json(*metric.standard_error) : Json(nullptr);
  }
  for (const auto& [name, count] : result.counts) json[name] = count;
  json["seconds"] = result.seconds;
  json["tokens_per_second"] =
      result.seconds > 0 ? static_cast<double>(result.computed_tokens) / result.seconds : 0.0;
  return json;
}

int64_t count_of(const eval::TaskResult& result, std::string_view name) {
  for (const auto& [known, count] : result.counts) {
    if (known == name) return count;
  }
  return 0;
}

void print_table(const std::vector<eval::TaskResult>& results) {
  size_t width = 4;
  for (const eval::TaskResult& result : results) width = std::max(width, result.file.size());
  const bool adapters =
      std::ranges::any_of(results, [](const auto& result) { return !result.adapter.empty(); });
  const auto line = [&](std::string_view task, std::string_view file, std::string_view adapter,
                        std::string_view rows, std::string_view shots, std::string_view metric,
                        std::string_view value, std::string_view error) {
    const std::string column = adapters ? fmt::format("{:<12}  ", adapter) : std::string();
    fmt::print("{:<8} {:<{}}  {}{:>7}  {:>5}  {:<16} {:>12}  {}\n", task, file, width, column, rows, shots,
               metric, value, error);
  };
  line("task", "file", "adapter", "rows", "shots", "metric", "value", "stderr");
  for (const eval::TaskResult& result : results) {
    const bool text = result.kind == "text";
    for (const eval::Metric& metric : result.metrics) {
      line(result.kind, result.file, result.adapter.empty() ? "-" : result.adapter,
           fmt::format("{}", count_of(result, text ? "documents" : "rows")),
           text ? "-" : fmt::format("{}", count_of(result, "num_fewshot")), metric.name,
           fmt::format("{:.4f}", metric.value),
           metric.standard_error ? fmt::format("± {:.4f}", *metric.standard_error) : "");
    }
  }
  for (const eval::TaskResult& result : results) {
    const std::string of = result.adapter.empty() ? "" : fmt::format(" ({})", result.adapter);
    std::string counts;
    if (result.kind == "text") {
      counts = fmt::format("{} tokens, {} words, {} bytes in windows of {} by {}; ",
                           count_of(result, "tokens"), count_of(result, "words"), count_of(result, "bytes"),
                           count_of(result, "seq"), count_of(result, "stride"));
    }
    if (const int64_t bad = count_of(result, "bad_rows"); bad > 0)
      counts += fmt::format("{} bad rows; ", bad);
    if (const int64_t cut = count_of(result, "truncated_rows"); cut > 0)
      counts += fmt::format("{} rows lost the beginning of their context; ", cut);
    fmt::print("{}{}: {}{} tokens computed in {:.1f} s, {:.1f} tokens/s\n", result.file, of, counts,
               result.computed_tokens, result.seconds,
               result.seconds > 0 ? static_cast<double>(result.computed_tokens) / result.seconds : 0.0);
  }
}

void print_results(const EvalFlags& flags, const LanguageModel& model,
                   const std::vector<eval::TaskResult>& results, bool interrupted) {
  if (!flags.json) {
    if (!results.empty()) print_table(results);
    return;
  }
  Json json = {{"model", model.name()}, {"tasks", Json::array()}};
  for (const eval::TaskResult& result : results) json["tasks"].push_back(to_json(result));
  json["interrupted"] = interrupted;
  std::printf("%s\n", dump_json(json, 2).c_str());
}

void evaluate(const EvalFlags& flags) {
  if (flags.texts.empty() && flags.choices.empty() && flags.exact.empty())
    throw CLI::ValidationError("nothing to evaluate; give --text, --choices or --exact FILE");
  eval::EvalOptions options = flags.options;
  if (!options.shots_file.empty() && options.shots == 0)
    throw CLI::ValidationError("--fewshot", "is of use with --num-fewshot K alone");
  if (flags.with_base && flags.model.adapters.empty())
    throw CLI::ValidationError("--with-base", "is of use with --lora alone");
  if (!flags.stop.empty()) options.stop = flags.stop;
  if (flags.add_bos != "auto") options.add_bos = flags.add_bos == "on";
  const eval::AnswerFilter check(options.filter);  // before a model is loaded
  SamplesFile samples(flags.samples);
  const std::shared_ptr<LanguageModel> model = load_model(flags.model);
  if (options.chat && model->chat_template() == nullptr) {
    throw_error(ErrorKind::kUnsupported,
                "--chat: {} has no chat template; give one with --chat-template-file", model->name());
  }
  const int64_t trained = model->decoder().config().max_position_embeddings;
  options.context = flags.model.context;
  if (options.context == 0) options.context = trained > 0 ? std::min(trained, kMostContext) : kMostContext;
  if (options.context < 2)
    throw_error(ErrorKind::kInvalidInput, "-c {}: 2 or more were expected", options.context);
  const std::vector<EvalJob> jobs = read_jobs(flags, *model, options);

  EngineOptions engine_wishes = engine_options(flags.model, flags.slots);
  engine_wishes.context = 2;
  for (const EvalJob& job : jobs)
    engine_wishes.context = std::max(engine_wishes.context, job.task->longest());
  engine_wishes.prompt_logprob_rows = kScoredRows;
  Engine engine(model, engine_wishes);
  std::vector<std::string> adapters;
  if (flags.model.adapters.empty() || flags.with_base) adapters.emplace_back();
  for (const AdapterSource& adapter : flags.model.adapters) adapters.push_back(adapter.name);

  const InterruptGuard guard;
  std::vector<eval::TaskResult> results;
  const Progress::Style style = flags.model.quiet ? Progress::Style::kSilent : Progress::style_of_stderr();
  for (const EvalJob& job : jobs) {
    for (const std::string& adapter : adapters) {
      Progress progress(adapter.empty() ? job.label : fmt::format("{} ({})", job.label, adapter),
                        job.task->requests().size(), style, stderr, "requests");
      progress.update(0);
      const eval::RunWatch watch = {[&](uint64_t done) { progress.update(done); },
                                    [] { return InterruptGuard::interrupted(); }};
      try {
        results.push_back(eval::run_task(engine, *job.task, adapter, watch, samples.wanted()));
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kCancelled) throw;
        progress.say("interrupted");
        print_results(flags, *model, results, true);
        throw CLI::RuntimeError(kInterrupted);
      }
      progress.finish();
      samples.write(results.back().samples);
      results.back().samples = {};
    }
  }
  print_results(flags, *model, results, false);
}

void add_question_flags(CLI::App& command, EvalFlags& flags) {
  constexpr const char* kGroup = "Questions";
  eval::EvalOptions& o = flags.options;
  command.add_option("--num-fewshot", o.shots, "Answered rows before each question, drawn by --seed [0]")
      ->check(CLI::Range(int64_t{0}, int64_t{1000}))
      ->type_name("K")
      ->group(kGroup);
  command
      .add_option("--fewshot", o.shots_file,
                  "File of such rows; without it, the others of the questions' file")
      ->type_name("FILE")
      ->group(kGroup);
  command.add_option("--seed", o.seed, "Seed of that draw: lm-evaluation-harness draws the same rows [1234]")
      ->type_name("N")
      ->group(kGroup);
  command
      .add_flag("--chat", o.chat,
                "Prompts are messages of a user, rendered by the model's chat template; examples are turns")
      ->group(kGroup);
  command
      .add_option("--add-bos", flags.add_bos,
                  "Whether prompts begin with the BOS token: on, off, auto (as the tokenizer says) [auto]")
      ->check(CLI::IsMember({"on", "off", "auto"}))
      ->type_name("WHEN")
      ->group(kGroup);
}

void add_answer_flags(CLI::App& command, EvalFlags& flags) {
  constexpr const char* kGroup = "Generated answers";
  eval::EvalOptions& o = flags.options;
  command.add_option("-n,--max-tokens", o.max_tokens, "Most tokens of an answer [256]")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->type_name("N")
      ->group(kGroup);
  command
      .add_option("--stop", flags.stop,
                  "End an answer before this text; may be repeated [an empty line; with --chat nothing]")
      ->allow_extra_args(false)
      ->type_name("TEXT")
      ->group(kGroup);
  command
      .add_option("--regex", o.filter.regex,
                  "Compare what this matches: its group, or the first of several that is not empty")
      ->type_name("REGEX")
      ->group(kGroup);
  command
      .add_option("--regex-match", o.filter.regex_match,
                  "Which of several matches: 0 the first, -1 the last [0]")
      ->type_name("I")
      ->group(kGroup);
  command.add_flag("--ignore-case", o.filter.ignore_case, "Compare in lower case")->group(kGroup);
  command.add_flag("--ignore-punctuation", o.filter.ignore_punctuation, "Compare without ASCII punctuation")
      ->group(kGroup);
  command.add_flag("--keep-whitespace", o.filter.keep_whitespace, "White space around an answer counts")
      ->group(kGroup);
}

}  // namespace

void add_eval_command(CLI::App& app) {
  const auto flags = std::make_shared<EvalFlags>();
  CLI::App* command = app.add_subcommand("eval", "Measure a model: perplexity, multiple choice, exact match");
  command
      ->add_option("--text", flags->texts,
                   R"(Perplexity of texts: plain files, or JSON Lines rows {"text": "…"})")
      ->type_name("FILE");
  command
      ->add_option(
          "--choices", flags->choices,
          R"(Multiple choice: rows {"question": "…", "choices": ["…"], "answer": place, letter or text})")
      ->type_name("FILE");
  command
      ->add_option("--exact", flags->exact,
                   R"(Exact match: rows {"prompt": "…" or "messages": […], "answer": "…" or ["…"]})")
      ->type_name("FILE");
  add_model_flags(*command, flags->model);
  command->add_option("--parallel", flags->slots, "Most requests that run at once (-np too) [16]")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}))
      ->type_name("N");
  add_named_adapters_flag(*command, flags->model);
  command->add_flag("--with-base", flags->with_base, "With --lora: the model without an adapter as well");
  command->add_option("--limit", flags->options.limit, "Evaluate the first N rows of each file; 0: all [0]")
      ->check(CLI::Range(int64_t{0}, INT64_MAX))
      ->type_name("N");
  command
      ->add_option("--seq", flags->options.window,
                   "Of texts: tokens of a window; 0: the context, at most 2048 [0]")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->type_name("N");
  command
      ->add_option("--stride", flags->options.stride,
                   "Of texts: tokens that each further window scores, given the rest of it; 0: all of it [0]")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->type_name("N");
  add_question_flags(*command, *flags);
  add_answer_flags(*command, *flags);
  command->add_option("--samples", flags->samples, "Write each row's outcome, one JSON object a line")
      ->type_name("OUT");
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->footer(
      "Methods and names are lm-evaluation-harness'; docs/eval.md says where they differ. Several files are "
      "several tasks.\n"
      "Examples:\n"
      "  qiao eval -m smollm2 --text book.txt --seq 1024 --stride 512\n"
      "  qiao eval -m RUN/model --choices quiz.jsonl --num-fewshot 5 --json\n"
      "  qiao eval -m smollm2 --exact sums.jsonl --chat --regex '(-?[0-9]+)' --regex-match=-1 --samples "
      "out.jsonl\n"
      "  qiao eval -m base.gguf --lora tuned=ADAPTER --with-base --choices quiz.jsonl");
  command->callback([flags] { evaluate(*flags); });
}

}  // namespace qiao::cli
