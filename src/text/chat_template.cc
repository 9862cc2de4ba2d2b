#include "text/chat_template.h"

#include "base/error.h"
#include "text/jinja_budget.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_parser.h"
#include "text/jinja_scope.h"
#include "text/jinja_unicode.h"

namespace qiao {

struct ChatTemplate::Program {
  std::string source;
  std::string where;
  TemplateLimits limits;
  std::unique_ptr<jinja::Template> code;
};

ChatTemplate::ChatTemplate(std::string_view source, std::string_view where, const TemplateLimits& limits)
    : program_(std::make_unique<Program>()) {
  program_->source = source;
  program_->where = where;
  program_->limits = limits;
  // Depths of values are kept in 16 bits, and no stack holds more.
  program_->limits.max_depth = std::clamp(limits.max_depth, 1, 1000);
  if (source.size() > limits.max_source_bytes) {
    throw_error(ErrorKind::kTooLarge, "{}: a template of {} bytes is over the limit of {}", where,
                source.size(), limits.max_source_bytes);
  }
  if (const size_t broken = jinja::find_broken_utf8(source); broken != std::string_view::npos) {
    throw_error(ErrorKind::kInvalidInput, "{}: byte {}: not valid UTF-8", where, broken);
  }
  try {
    program_->code = jinja::parse_template(source, program_->limits.max_depth);
    jinja::resolve(*program_->code);
  } catch (const Error& e) {
    throw Error(e.kind(), fmt::format("{}: {}", where, e.what()));
  }
}

ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

std::string ChatTemplate::render(const Json& variables, int64_t now, std::vector<TextSpan>* generated) const {
  jinja::Budget budget(program_->limits);
  int line = 1;
  try {
    jinja::Interpreter interpreter(*program_->code, variables, now, budget);
    try {
      return interpreter.run(generated);
    } catch (...) {
      line = interpreter.line();
      throw;
    }
  } catch (const Error& e) {
    throw Error(e.kind(), fmt::format("{}: line {}: {}", program_->where, line, e.what()));
  }
}

const std::string& ChatTemplate::source() const { return program_->source; }

}  // namespace qiao
