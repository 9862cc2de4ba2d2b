// What is to be evaluated, cut into requests to an engine, and what their outcomes say.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "eval/answer_filter.h"
#include "eval/rows.h"
#include "infer/engine.h"
#include "infer/language_model.h"

namespace qiao::eval {

struct EvalOptions {
  int64_t context = 0;  // tokens that a sequence may have, 2 or more
  int64_t limit = 0;    // rows of each file that are evaluated, from the first; 0: all
  std::optional<bool> add_bos;
  // Of texts: input tokens of a window, at most the context, and how many more each window scores. 0: the
  // context, at most 2048; the window.
  int64_t window = 0, stride = 0;
  // Of questions.
  int64_t shots = 0;
  std::filesystem::path shots_file;  // empty: the other rows of the questions' own file
  uint64_t seed = 1234;              // lm-evaluation-harness'
  bool chat = false;                 // prompts are a user's messages
  // Of answers that are generated.
  int64_t max_tokens = 256;
  std::optional<std::vector<std::string>> stop;  // without: an empty line ends an answer, but not in a chat
  AnswerFilterOptions filter;
};

// One sequence: its tokens are scored from `first` on, or, where that is 0, gone on with.
struct TaskRequest {
  std::vector<TokenId> tokens;
  int64_t first = 0;
  int64_t after =
      -1;  // a request with which it shares its beginning: it is of use to wait for that; -1: none
};

struct Outcome {
  double log_likelihood = 0;  // natural logarithm, of all scored tokens together
  std::string text;           // what was generated
  FinishReason finish = FinishReason::kNone;
};

struct Metric {
  std::string name;  // lm-evaluation-harness'
  double value = 0;
  std::optional<double> standard_error;  // of a mean of two or more
};

struct TaskResult {
  std::string kind, file, adapter;  // "text", "choices" or "exact"; empty: no adapter
  std::vector<Metric> metrics;
  std::vector<std::pair<std::string, int64_t>> counts;  // rows, bad_rows, tokens…
  double seconds = 0;
  int64_t computed_tokens = 0;  // those found in the cache are none
  std::vector<Json> samples;    // one a row or document, where wanted
};

// Rows of one file, read and encoded. Immutable.
class Task {
 public:
  virtual ~Task() = default;
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  const std::vector<TaskRequest>& requests() const { return requests_; }
  // What a request to an engine is; without an adapter.
  GenerationRequest request(size_t index) const;
  // Tokens that the longest sequence comes to, with what it may generate.
  int64_t longest() const;
  // `outcomes` of the requests, in their order.
  virtual TaskResult score(std::span<const Outcome> outcomes, bool with_samples) const = 0;

 protected:
  Task() = default;
  std::vector<TaskRequest> requests_;
  SamplingOptions sampling_;  // of what is generated
  int64_t max_tokens_ = 0;
  std::vector<std::string> stop_;
};

using Warn = std::function<void(const std::string&)>;

// The three kinds of tasks. All throw Error naming the file, or the flag, where there is nothing to evaluate.
std::unique_ptr<Task> read_text_task(const std::filesystem::path& file, const LanguageModel& model,
                                     const EvalOptions& options, const Warn& warn);
std::unique_ptr<Task> read_choice_task(const std::filesystem::path& file, const LanguageModel& model,
                                       const EvalOptions& options, const Warn& warn);
std::unique_ptr<Task> read_exact_task(const std::filesystem::path& file, const LanguageModel& model,
                                      const EvalOptions& options, const Warn& warn);

// The mean of a metric over rows, with sample standard deviation / sqrt(n) where there are two or more.
Metric mean_of(std::string name, std::span<const double> values);

}  // namespace qiao::eval
