#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <chrono>

#include "base/error.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace qiao::tokenization {
namespace {

constexpr size_t kMaxPatternBytes = size_t{64} << 10;
constexpr uint32_t kMatchLimit = 20'000'000;  // backtracking steps of one search: some tenths of a second
constexpr std::chrono::milliseconds kTimeLimit(
    5'000);                                     // of all searches of a text, and 10 µs for each of its bytes
constexpr uint32_t kHeapLimitKib = 512 * 1024;  // of the interpreter, where the JIT's stack does not do
constexpr size_t kJitStackMost = size_t{4} << 20;

// Scratch of one thread: PCRE2 wants it beside the immutable code.
struct Scratch {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(64 << 10, kJitStackMost, nullptr);
  Scratch() {
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_heap_limit(context, kHeapLimitKib);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Scratch() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

Scratch& scratch() {
  thread_local Scratch instance;
  return instance;
}

// `text`, or `storage` with characters that PCRE2's tables lack replaced by older ones of the same kind and
// length.
std::string_view with_known_characters(std::string_view text, std::string& storage) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0xE0) {
      ++i;  // none of the additions is shorter than three bytes
      continue;
    }
    size_t n;
    const char32_t c = utf8_decode(text, i, &n);
    const char32_t known = older_equivalent(c);
    if (known != c) {
      if (storage.empty()) storage = text;
      std::string bytes;
      utf8_append(bytes, known);
      QIAO_ASSERT(bytes.size() == n);
      storage.replace(i, n, bytes);
    }
    i += n;
  }
  return storage.empty() ? text : std::string_view(storage);
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  bool jit = false;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(std::string_view onig_pattern, std::string_view where)
    : code_(std::make_unique<Code>()), where_(where) {
  if (onig_pattern.size() > kMaxPatternBytes) {
    throw_error(ErrorKind::kTooLarge, "{}: regular expression of {} bytes is over the limit of {}", where,
                onig_pattern.size(), kMaxPatternBytes);
  }
  if (!utf8_valid(onig_pattern)) {
    throw_error(ErrorKind::kInvalidInput, "{}: regular expression is not UTF-8", where);
  }
  const std::string pattern = translate_regex(onig_pattern, where);
  std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                              &offset, context.get());
  if (code_->code == nullptr) {
    char message[256];
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
    throw_error(ErrorKind::kInvalidInput, "{}: regular expression: {}", where, message);
  }
  code_->jit = pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE) == 0;
}

Regex::~Regex() = default;

void Regex::find_all(std::string_view text, std::vector<Match>& matches) const {
  matches.clear();
  std::string storage;
  const std::string_view subject = with_known_characters(text, storage);
  const auto* bytes = reinterpret_cast<PCRE2_SPTR>(subject.data());
  Scratch& s = scratch();
  size_t at = 0;
  size_t last_end = SIZE_MAX;
  const auto deadline =
      std::chrono::steady_clock::now() + kTimeLimit + std::chrono::microseconds(10 * text.size());
  while (at <= subject.size()) {
    int found = PCRE2_ERROR_JIT_STACKLIMIT;
    if (code_->jit) {
      found = pcre2_jit_match(code_->code, bytes, subject.size(), at, PCRE2_NO_UTF_CHECK, s.data, s.context);
    }
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found = pcre2_match(code_->code, bytes, subject.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s.data,
                          s.context);
    }
    if (found == PCRE2_ERROR_NOMATCH) return;
    if (found < 0) {
      char message[256];
      pcre2_get_error_message(found, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
      throw_error(ErrorKind::kTooLarge, "{}: regular expression at byte {} of the text: {}", where_, at,
                  message);
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(s.data);
    const size_t begin = range[0];
    const size_t end = range[1];
    if (begin > end)
      throw_error(ErrorKind::kUnsupported, "{}: regular expression with \\K in a lookaround", where_);
    if (begin == end && end == last_end) {
      if (at >= subject.size()) return;
      at += std::max<size_t>(utf8_length(subject, at), 1);
      continue;
    }
    if (matches.size() % 64 == 63 && std::chrono::steady_clock::now() > deadline) {
      throw_error(ErrorKind::kTooLarge, "{}: regular expression takes too long (byte {} of {})", where_, at,
                  text.size());
    }
    matches.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(end)});
    at = end;
    last_end = end;
  }
}

}  // namespace qiao::tokenization
