// What choices and generated answers have in common: a question, and examples before it.
#pragma once

#include <string>
#include <vector>

#include "eval/few_shot.h"
#include "eval/task.h"

namespace qiao::eval {

struct Question {
  Row row;
  std::string prompt;  // or
  Json messages;       // a list; null where it is a prompt
  std::string answer;  // as an example shows it
};

// Reads questions by `read`, which throws Error for a bad row.
class QuestionFile {
 public:
  using Read = std::function<Question(const Row&)>;
  QuestionFile(const std::filesystem::path& file, const EvalOptions& options, const Read& read, BadRows& bad);
  QuestionFile(const QuestionFile&) = delete;
  QuestionFile& operator=(const QuestionFile&) = delete;

  // Those to be evaluated: the first `limit`.
  std::span<const Question> questions() const;
  // The text before the answer of a question (its chat rendered, with what opens the answer): examples with
  // " " between prompt and answer and an empty line behind; in a chat turns of user and assistant. To be
  // called once for each question, in order.
  std::string context(const Question& question, const LanguageModel& model);

 private:
  std::vector<Question> questions_, pool_;
  std::vector<Row> pool_rows_;  // the sampler's
  bool shared_, chat_;
  int64_t limit_;
  std::optional<FewShotSampler> sampler_;
};

// Of a file's rows.
struct QuestionCounts {
  int64_t rows = 0;       // that are evaluated
  int64_t bad_rows = 0;   // that are not
  int64_t truncated = 0;  // whose beginning was cut to fit the context
  int64_t shots = 0;      // examples before each

  // Throws Error(kInvalidInput) naming the file where no row is any good.
  void check(const std::filesystem::path& file) const;
  std::vector<std::pair<std::string, int64_t>> listed() const;  // TaskResult::counts
};

inline constexpr const char* kTargetDelimiter = " ";

// "question", "prompt" or "context" of a row. Throws Error(kInvalidInput) without.
std::string prompt_of(const Row& row);

}  // namespace qiao::eval
