// Perplexity of texts, by the rolling log-likelihood of lm-evaluation-harness.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "base/file.h"
#include "eval/encoding.h"
#include "eval/python_text.h"
#include "eval/task.h"
#include "text/utf8.h"

namespace qiao::eval {
namespace {

constexpr int64_t kDefaultWindow = 2048;
constexpr size_t kMostTextBytes = size_t{4} << 30;

struct TextDocument {
  int64_t line = 0;  // of a row; 0: the whole file
  int64_t tokens = 0, words = 0, bytes = 0;
  size_t first_request = 0, requests = 0;
};

double perplexity(double log_likelihood, int64_t units) {
  return std::exp(-log_likelihood / static_cast<double>(units));
}

class TextTask final : public Task {
 public:
  TextTask(std::filesystem::path file, const LanguageModel& model, const EvalOptions& options,
           const Warn& warn);
  TaskResult score(std::span<const Outcome> outcomes, bool with_samples) const override;

 private:
  void add(std::string_view text, int64_t line, const TextEncoder& encoder);

  std::filesystem::path file_;
  int64_t window_, stride_;
  std::vector<TextDocument> documents_;
  TextDocument total_;
  int64_t bad_rows_ = 0;
};

TextTask::TextTask(std::filesystem::path file, const LanguageModel& model, const EvalOptions& options,
                   const Warn& warn)
    : file_(std::move(file)) {
  window_ = options.window > 0 ? options.window : std::min(options.context, kDefaultWindow);
  stride_ = options.stride > 0 ? options.stride : window_;
  if (window_ > options.context) {
    throw_error(ErrorKind::kInvalidInput, "--seq {}: is more than the context of {} (-c)", window_,
                options.context);
  }
  if (stride_ > window_)
    throw_error(ErrorKind::kInvalidInput, "--stride {}: 1 to --seq, which is {}, was expected", stride_,
                window_);
  const TextEncoder encoder(model, false);  // the prefix stands in the place of a BOS token
  if (const std::string kind = file_.extension().string();
      kind == ".jsonl" || kind == ".json" || kind == ".ndjson") {
    BadRows bad(warn);
    for (const Row& row : read_rows(file_, bad)) {
      if (options.limit > 0 && std::ssize(documents_) == options.limit) break;
      const Json* text = find_field(row, {"text"});
      if (text == nullptr || !text->is_string()) {
        bad.tell(row, R"("text" (a text) was expected)");
        continue;
      }
      add(text->get_ref<const std::string&>(), row.line, encoder);
    }
    bad_rows_ = bad.count();
  } else {
    const std::string text = read_file(file_, kMostTextBytes);
    for (size_t at = 0, length = 0; at < text.size(); at += length) {
      length = tokenization::utf8_length(text, at);
      if (length == 0) {
        throw_error(ErrorKind::kInvalidInput, "{}: byte {} is not UTF-8; a text was expected", file_.string(),
                    at);
      }
    }
    add(text, 0, encoder);
  }
  if (total_.tokens == 0)
    throw_error(ErrorKind::kInvalidInput, "{}: holds no text to be evaluated", file_.string());
}

void TextTask::add(std::string_view text, int64_t line, const TextEncoder& encoder) {
  TextDocument document;
  document.line = line;
  document.words = count_words(text);
  document.bytes = std::ssize(text);
  document.first_request = requests_.size();
  const std::vector<TokenId> tokens = encoder.encode_without_bos(text);
  document.tokens = std::ssize(tokens);
  for (ScoredTokens& part : rolling_windows(tokens, encoder.prefix(), window_, stride_))
    requests_.push_back({std::move(part.tokens), part.first, -1});
  document.requests = requests_.size() - document.first_request;
  total_.tokens += document.tokens;
  total_.words += document.words;
  total_.bytes += document.bytes;
  documents_.push_back(document);
}

TaskResult TextTask::score(std::span<const Outcome> outcomes, bool with_samples) const {
  TaskResult result;
  result.kind = "text";
  result.file = file_.string();
  double log_likelihood = 0;
  for (const TextDocument& document : documents_) {
    double sum = 0;
    for (const Outcome& outcome : outcomes.subspan(document.first_request, document.requests))
      sum += outcome.log_likelihood;
    log_likelihood += sum;
    if (!with_samples) continue;
    result.samples.push_back({{"task", "text"},
                              {"file", file_.string()},
                              {"line", document.line},
                              {"log_likelihood", sum},
                              {"tokens", document.tokens},
                              {"words", document.words},
                              {"bytes", document.bytes}});
  }
  result.metrics = {
      {"word_perplexity", perplexity(log_likelihood, total_.words), {}},
      {"byte_perplexity", perplexity(log_likelihood, total_.bytes), {}},
      {"bits_per_byte", -log_likelihood / static_cast<double>(total_.bytes) / std::numbers::ln2, {}},
      {"token_perplexity", perplexity(log_likelihood, total_.tokens), {}},
      {"log_likelihood", log_likelihood, {}}};
  result.counts = {{"documents", std::ssize(documents_)},
                   {"bad_rows", bad_rows_},
                   {"tokens", total_.tokens},
                   {"words", total_.words},
                   {"bytes", total_.bytes},
                   {"windows", std::ssize(requests_)},
                   {"seq", window_},
                   {"stride", stride_}};
  return result;
}

}  // namespace

std::unique_ptr<Task> read_text_task(const std::filesystem::path& file, const LanguageModel& model,
                                     const EvalOptions& options, const Warn& warn) {
  return std::make_unique<TextTask>(file, model, options, warn);
}

}  // namespace qiao::eval
