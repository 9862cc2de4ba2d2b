#include "eval/question.h"

#include "base/error.h"

namespace qiao::eval {
namespace {

constexpr const char* kExampleDelimiter = "\n\n";

std::vector<Question> read_questions(const std::filesystem::path& file, const QuestionFile::Read& read,
                                     BadRows& bad) {
  std::vector<Question> questions;
  for (Row& row : read_rows(file, bad)) {
    try {
      Question question = read(row);
      question.row = std::move(row);
      questions.push_back(std::move(question));
    } catch (const Error& error) {
      bad.tell(row, error.what());
    }
  }
  if (questions.empty()) {
    throw_error(ErrorKind::kInvalidInput, "{}: no row is any good; {} are bad", file.string(), bad.count());
  }
  return questions;
}

void add_turns(Json& messages, const Question& question) {
  if (question.messages.is_null()) {
    messages.push_back({{"role", "user"}, {"content", question.prompt}});
  } else {
    messages.insert(messages.end(), question.messages.begin(), question.messages.end());
  }
}

}  // namespace

QuestionFile::QuestionFile(const std::filesystem::path& file, const EvalOptions& options, const Read& read,
                           BadRows& bad)
    : questions_(read_questions(file, read, bad)),
      shared_(options.shots_file.empty()),
      chat_(options.chat),
      limit_(options.limit) {
  if (options.shots == 0) return;
  pool_ = shared_ ? questions_ : read_questions(options.shots_file, read, bad);
  for (const Question& question : pool_) pool_rows_.push_back(question.row);
  sampler_.emplace(pool_rows_, options.shots, options.seed, shared_);
}

std::span<const Question> QuestionFile::questions() const {
  const size_t count =
      limit_ > 0 ? std::min(questions_.size(), static_cast<size_t>(limit_)) : questions_.size();
  return std::span(questions_).first(count);
}

std::string QuestionFile::context(const Question& question, const LanguageModel& model) {
  std::vector<size_t> examples;
  if (sampler_) examples = sampler_->sample(question.row);
  if (!chat_ && question.messages.is_null()) {
    std::string text;
    for (const size_t i : examples)
      text += pool_[i].prompt + kTargetDelimiter + pool_[i].answer + kExampleDelimiter;
    return text + question.prompt;
  }
  Json messages = Json::array();
  for (const size_t i : examples) {
    add_turns(messages, pool_[i]);
    messages.push_back({{"role", "assistant"}, {"content", pool_[i].answer}});
  }
  add_turns(messages, question);
  return model.render_chat({{"messages", std::move(messages)}, {"add_generation_prompt", true}});
}

std::string prompt_of(const Row& row) {
  for (const char* name : {"question", "prompt", "context"}) {
    if (const Json* value = find_field(row, {name})) return text_of(*value, fmt::format("\"{}\"", name));
  }
  throw_error(ErrorKind::kInvalidInput, R"("question", "prompt" or "context" (a text) was expected)");
}

void QuestionCounts::check(const std::filesystem::path& file) const {
  if (rows == 0)
    throw_error(ErrorKind::kInvalidInput, "{}: no row is any good; {} are bad", file.string(), bad_rows);
}

std::vector<std::pair<std::string, int64_t>> QuestionCounts::listed() const {
  return {{"rows", rows}, {"bad_rows", bad_rows}, {"truncated_rows", truncated}, {"num_fewshot", shots}};
}

}  // namespace qiao::eval
