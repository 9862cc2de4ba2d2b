// Multiple choice: which continuation of a question is the likeliest, as lm-evaluation-harness decides it.
#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/quote.h"
#include "eval/encoding.h"
#include "eval/python_text.h"
#include "eval/question.h"
#include "eval/task.h"

namespace qiao::eval {
namespace {

struct Choices {
  std::string where;
  int64_t line = 0;
  std::vector<std::string> texts;
  size_t gold = 0, first_request = 0;
};

// A place from 0 on, a choice's own text, its letter or the digits of its place: the first that fits.
size_t read_gold(const Json& answer, const std::vector<std::string>& choices) {
  const auto within = [&](int64_t index) { return index >= 0 && index < std::ssize(choices); };
  if (answer.is_number_integer()) {
    if (answer.is_number_unsigned() ? answer.get<uint64_t>() < choices.size() : within(answer.get<int64_t>()))
      return answer.get<size_t>();
  } else if (answer.is_string()) {
    const auto& text = answer.get_ref<const std::string&>();
    const auto found = std::ranges::find(choices, text);
    if (found != choices.end()) return static_cast<size_t>(found - choices.begin());
    if (text.size() == 1 && text[0] >= 'A' && text[0] <= 'Z' && within(text[0] - 'A'))
      return static_cast<size_t>(text[0] - 'A');
    if (text.size() == 1 && text[0] >= 'a' && text[0] <= 'z' && within(text[0] - 'a'))
      return static_cast<size_t>(text[0] - 'a');
    int64_t index = -1;
    const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), index);
    if (problem == std::errc() && end == text.data() + text.size() && within(index))
      return static_cast<size_t>(index);
  }
  throw_error(ErrorKind::kInvalidInput,
              R"("answer" is {}; a place from 0 to {}, a letter or the text of a choice was expected)",
              printable(dump_json(answer), 60), choices.size() - 1);
}

std::vector<std::string> read_choices(const Row& row) {
  const Json* list = find_field(row, {"choices"});
  if (list == nullptr) throw_error(ErrorKind::kInvalidInput, R"("choices" (a list of texts) was expected)");
  std::vector<std::string> choices = texts_of(*list, "\"choices\"");
  if (choices.size() < 2)
    throw_error(ErrorKind::kInvalidInput, R"("choices" has 1 text; 2 or more were expected)");
  for (size_t i = 0; i < choices.size(); ++i) {
    if (choices[i].empty()) throw_error(ErrorKind::kInvalidInput, "\"choices\"[{}] is empty", i);
  }
  return choices;
}

size_t read_gold(const Row& row, const std::vector<std::string>& choices) {
  const Json* answer = find_field(row, {"answer"});
  if (answer == nullptr)
    throw_error(ErrorKind::kInvalidInput,
                R"("answer" (a place, a letter or the text of a choice) was expected)");
  return read_gold(*answer, choices);
}

Question read_choice_question(const Row& row) {
  const std::vector<std::string> choices = read_choices(row);
  Question question;
  question.prompt = prompt_of(row);
  question.answer = choices[read_gold(row, choices)];
  return question;
}

class ChoiceTask final : public Task {
 public:
  ChoiceTask(std::filesystem::path file, const LanguageModel& model, const EvalOptions& options,
             const Warn& warn);
  TaskResult score(std::span<const Outcome> outcomes, bool with_samples) const override;

 private:
  std::filesystem::path file_;
  std::vector<Choices> rows_;
  QuestionCounts counts_;
};

ChoiceTask::ChoiceTask(std::filesystem::path file, const LanguageModel& model, const EvalOptions& options,
                       const Warn& warn)
    : file_(std::move(file)) {
  BadRows bad(warn);
  const TextEncoder encoder(model, options.add_bos);
  QuestionFile questions(file_, options, read_choice_question, bad);
  for (const Question& question : questions.questions()) {
    Choices choices{question.row.where(), question.row.line, read_choices(question.row), 0, requests_.size()};
    choices.gold = read_gold(question.row, choices.texts);
    const std::string context = questions.context(question, model);
    bool truncated = false;
    try {
      for (const std::string& choice : choices.texts) {
        ScoredTokens scored = encoder.encode_pair(context, (options.chat ? "" : kTargetDelimiter) + choice);
        truncated |= truncate_left(scored, options.context);
        const bool leads = requests_.size() == choices.first_request;
        requests_.push_back({std::move(scored.tokens), scored.first,
                             leads ? -1 : static_cast<int64_t>(choices.first_request)});
      }
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kInvalidInput) throw;
      requests_.resize(choices.first_request);
      bad.tell(question.row, error.what());
      continue;
    }
    counts_.truncated += truncated ? 1 : 0;
    rows_.push_back(std::move(choices));
  }
  counts_.rows = std::ssize(rows_);
  counts_.bad_rows = bad.count();
  counts_.shots = options.shots;
  counts_.check(file_);
}

// The first of the largest.
size_t largest(const std::vector<double>& values) {
  return static_cast<size_t>(std::ranges::max_element(values) - values.begin());
}

TaskResult ChoiceTask::score(std::span<const Outcome> outcomes, bool with_samples) const {
  TaskResult result;
  result.kind = "choices";
  result.file = file_.string();
  std::vector<double> acc, acc_norm, acc_bytes;
  for (const Choices& row : rows_) {
    std::vector<double> sums, by_characters, by_bytes;
    for (size_t i = 0; i < row.texts.size(); ++i) {
      sums.push_back(outcomes[row.first_request + i].log_likelihood);
      by_characters.push_back(sums[i] / static_cast<double>(count_characters(row.texts[i])));
      by_bytes.push_back(sums[i] / static_cast<double>(row.texts[i].size()));
    }
    const size_t said = largest(sums), said_norm = largest(by_characters);
    acc.push_back(said == row.gold ? 1 : 0);
    acc_norm.push_back(said_norm == row.gold ? 1 : 0);
    acc_bytes.push_back(largest(by_bytes) == row.gold ? 1 : 0);
    if (!with_samples) continue;
    result.samples.push_back({{"task", "choices"},
                              {"file", file_.string()},
                              {"line", row.line},
                              {"choices", row.texts},
                              {"log_likelihoods", sums},
                              {"gold", row.gold},
                              {"said", said},
                              {"said_norm", said_norm},
                              {"acc", acc.back()},
                              {"acc_norm", acc_norm.back()},
                              {"acc_bytes", acc_bytes.back()}});
  }
  result.metrics = {mean_of("acc", acc), mean_of("acc_norm", acc_norm), mean_of("acc_bytes", acc_bytes)};
  result.counts = counts_.listed();
  return result;
}

}  // namespace

std::unique_ptr<Task> read_choice_task(const std::filesystem::path& file, const LanguageModel& model,
                                       const EvalOptions& options, const Warn& warn) {
  return std::make_unique<ChoiceTask>(file, model, options, warn);
}

}  // namespace qiao::eval
