#include "eval/answer_filter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "eval/python_text.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace qiao::eval {
namespace {

constexpr size_t kMostPatternBytes = size_t{64} << 10;
constexpr uint32_t kMostSteps = 20'000'000;  // of one match: some tenths of a second
constexpr uint32_t kMostHeapKib = 512 * 1024;
constexpr const char* kNoMatch = "[invalid]";

std::string pcre2_error(int code) {
  char text[256];
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof text);
  return text;
}

}  // namespace

struct AnswerFilter::Pattern {
  explicit Pattern(const std::string& regex) {
    int problem = 0;
    PCRE2_SIZE offset = 0;
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(regex.data()), regex.size(),
                         PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &problem, &offset, nullptr);
    if (code == nullptr)
      throw_error(ErrorKind::kInvalidInput, "--regex: {} at byte {}", pcre2_error(problem), offset);
    data = pcre2_match_data_create_from_pattern(code, nullptr);
    context = pcre2_match_context_create(nullptr);
    pcre2_set_match_limit(context, kMostSteps);
    pcre2_set_heap_limit(context, kMostHeapKib);
  }
  ~Pattern() {
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
    pcre2_code_free(code);
  }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  // re.findall: of each match the whole, the only group, or the first group that is not empty; nothing for a
  // match whose groups are all empty.
  std::vector<std::optional<std::string>> find_all(const std::string& text) const;

  pcre2_code* code = nullptr;
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
};

std::vector<std::optional<std::string>> AnswerFilter::Pattern::find_all(const std::string& text) const {
  std::vector<std::optional<std::string>> found;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  uint32_t groups = 0;
  pcre2_pattern_info(code, PCRE2_INFO_CAPTURECOUNT, &groups);
  uint32_t options = PCRE2_NO_UTF_CHECK;
  for (size_t at = 0; at <= text.size();) {
    const int count = pcre2_match(code, subject, text.size(), at, options, data, context);
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) throw_error(ErrorKind::kTooLarge, "--regex: {}", pcre2_error(count));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data);
    const auto group = [&](uint32_t i) {
      return range[2 * i] == PCRE2_UNSET ? std::string()
                                         : text.substr(range[2 * i], range[2 * i + 1] - range[2 * i]);
    };
    std::optional<std::string> taken;
    if (groups <= 1) taken = group(groups);
    for (uint32_t i = 1; groups > 1 && i <= groups && !taken; ++i) {
      if (std::string one = group(i); !one.empty()) taken = std::move(one);
    }
    found.push_back(std::move(taken));
    const size_t begin = range[0], end = range[1];
    if (end < begin || end < at) break;  // \K in a look-around
    // As Python: an empty match may follow a match, but not stand where an empty one stood.
    options = PCRE2_NO_UTF_CHECK | (begin == end ? PCRE2_NOTEMPTY_ATSTART : 0u);
    if (begin == end && end == text.size()) break;
    at = end;
  }
  return found;
}

AnswerFilter::AnswerFilter(const AnswerFilterOptions& options) : options_(options) {
  if (options.regex.empty()) return;
  if (options.regex.size() > kMostPatternBytes) {
    throw_error(ErrorKind::kTooLarge, "--regex: {} bytes are over the limit of {}", options.regex.size(),
                kMostPatternBytes);
  }
  if (!tokenization::utf8_valid(options.regex))
    throw_error(ErrorKind::kInvalidInput, "--regex: is not UTF-8");
  pattern_ = std::make_unique<Pattern>(options.regex);
}

AnswerFilter::~AnswerFilter() = default;

std::string AnswerFilter::extract(std::string_view generated) const {
  const std::string text = tokenization::utf8_replace_invalid(generated);
  if (pattern_ == nullptr)
    return std::string(options_.keep_whitespace ? std::string_view(text) : strip(text));
  const std::vector<std::optional<std::string>> found = pattern_->find_all(text);
  const int64_t index =
      options_.regex_match < 0 ? std::ssize(found) + options_.regex_match : options_.regex_match;
  if (index < 0 || index >= std::ssize(found)) return kNoMatch;
  return std::string(strip(found[static_cast<size_t>(index)].value_or(kNoMatch)));
}

std::string AnswerFilter::normalize(std::string_view text) const {
  std::string normal(options_.keep_whitespace ? text : strip(text));
  if (options_.ignore_case) normal = tokenization::lowercase(normal);
  if (options_.ignore_punctuation) normal = without_punctuation(normal);
  return normal;
}

bool AnswerFilter::matches(std::string_view extracted, const std::vector<std::string>& answers) const {
  const std::string said = normalize(extracted);
  return std::ranges::any_of(answers, [&](const std::string& answer) { return normalize(answer) == said; });
}

}  // namespace qiao::eval
