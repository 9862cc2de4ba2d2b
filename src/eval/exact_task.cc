// Exact match: whether what a model says, after filters, is one of the answers.
#include <algorithm>

#include "base/error.h"
#include "base/quote.h"
#include "eval/encoding.h"
#include "eval/question.h"
#include "eval/task.h"

namespace qiao::eval {
namespace {

struct ExactRow {
  int64_t line = 0;
  std::vector<std::string> answers;
};

std::vector<std::string> read_answers(const Row& row) {
  const Json* answer = find_field(row, {"answer"});
  if (answer == nullptr)
    throw_error(ErrorKind::kInvalidInput, R"("answer" (a text or a list of texts) was expected)");
  if (answer->is_array()) return texts_of(*answer, "\"answer\"");
  if (answer->is_number()) return {dump_json(*answer)};  // 42 is "42"
  return {text_of(*answer, "\"answer\"")};
}

Question read_exact_question(const Row& row) {
  Question question;
  question.answer = read_answers(row).front();
  if (const Json* messages = find_field(row, {"messages"})) {
    if (!messages->is_array() || messages->empty() ||
        !std::ranges::all_of(*messages, [](const Json& one) { return one.is_object(); })) {
      throw_error(ErrorKind::kInvalidInput, R"("messages" is {}; a list of messages was expected)",
                  printable(dump_json(*messages), 60));
    }
    question.messages = *messages;
  } else {
    question.prompt = prompt_of(row);
  }
  return question;
}

class ExactTask final : public Task {
 public:
  ExactTask(std::filesystem::path file, const LanguageModel& model, const EvalOptions& options,
            const Warn& warn);
  TaskResult score(std::span<const Outcome> outcomes, bool with_samples) const override;

 private:
  std::filesystem::path file_;
  AnswerFilter filter_;
  std::vector<ExactRow> rows_;
  QuestionCounts counts_;
};

ExactTask::ExactTask(std::filesystem::path file, const LanguageModel& model, const EvalOptions& options,
                     const Warn& warn)
    : file_(std::move(file)), filter_(options.filter) {
  sampling_ = model.recommended_sampling();  // its repetition penalty, as Transformers' generate() has it
  max_tokens_ = options.max_tokens;
  stop_ = options.stop.value_or(options.chat ? std::vector<std::string>() : std::vector<std::string>{"\n\n"});
  const int64_t room = options.context - max_tokens_;
  if (room < 1) {
    throw_error(ErrorKind::kInvalidInput,
                "--max-tokens {}: leaves no room for a prompt in a context of {} (-c)", max_tokens_,
                options.context);
  }
  BadRows bad(warn);
  const TextEncoder encoder(model, options.add_bos);
  QuestionFile questions(file_, options, read_exact_question, bad);
  for (const Question& question : questions.questions()) {
    std::vector<TokenId> tokens;
    try {
      tokens = encoder.encode(questions.context(question, model));
      if (tokens.empty()) tokens.push_back(encoder.prefix());
    } catch (const Error& error) {  // a template that does not take these messages
      bad.tell(question.row, error.what());
      continue;
    }
    if (const int64_t excess = std::ssize(tokens) - room; excess > 0) {
      tokens.erase(tokens.begin(), tokens.begin() + excess);
      ++counts_.truncated;
    }
    requests_.push_back({std::move(tokens), 0, -1});
    rows_.push_back({question.row.line, read_answers(question.row)});
  }
  counts_.rows = std::ssize(rows_);
  counts_.bad_rows = bad.count();
  counts_.shots = options.shots;
  counts_.check(file_);
}

TaskResult ExactTask::score(std::span<const Outcome> outcomes, bool with_samples) const {
  TaskResult result;
  result.kind = "exact";
  result.file = file_.string();
  std::vector<double> matches;
  for (size_t i = 0; i < rows_.size(); ++i) {
    const std::string extracted = filter_.extract(outcomes[i].text);
    matches.push_back(filter_.matches(extracted, rows_[i].answers) ? 1 : 0);
    if (!with_samples) continue;
    result.samples.push_back(
        {{"task", "exact"},
         {"file", file_.string()},
         {"line", rows_[i].line},
         {"generated", outcomes[i].text},
         {"extracted", extracted},
         {"answers", rows_[i].answers},
         {"finish_reason", outcomes[i].finish == FinishReason::kLength ? "length" : "stop"},
         {"exact_match", matches.back()}});
  }
  result.metrics = {mean_of("exact_match", matches)};
  result.counts = counts_.listed();
  return result;
}

}  // namespace

std::unique_ptr<Task> read_exact_task(const std::filesystem::path& file, const LanguageModel& model,
                                      const EvalOptions& options, const Warn& warn) {
  return std::make_unique<ExactTask>(file, model, options, warn);
}

}  // namespace qiao::eval
