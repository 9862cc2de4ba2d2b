// Chat templates: the Jinja that published models use, interpreted under limits.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace qiao {

struct TemplateLimits {
  size_t max_source_bytes = size_t{1} << 20;
  size_t max_output_bytes = size_t{64} << 20;  // of the whole, and of any one string on the way
  uint64_t max_steps = 50'000'000;             // evaluated nodes and loop turns
  int max_depth = 200;  // of nesting in the source, and of macro calls and values in a run
};

// Bytes [begin, end) of a text.
struct TextSpan {
  size_t begin = 0, end = 0;
};

// Immutable after construction; render is safe from any thread.
class ChatTemplate {
 public:
  // Throws Error(kInvalidInput) "WHERE: line N: …" for a syntax error, Error(kUnsupported) for Jinja that no
  // published template uses.
  explicit ChatTemplate(std::string_view source, std::string_view where = "chat template",
                        const TemplateLimits& limits = {});
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // `variables` is an object: messages, tools, documents, add_generation_prompt, bos_token, eos_token and
  // whatever the caller adds (enable_thinking…). The text equals jinja2's with Transformers' settings
  // (trim_blocks, lstrip_blocks, loop controls, its tojson, strftime_now, raise_exception; a sandbox). `now`
  // (seconds since 1970, local time) is what strftime_now shows; negative: the clock. Throws
  // Error(kInvalidInput): the template's own raise_exception, an undefined operation; Error(kTooLarge): a
  // limit. `generated` (may be null) gets where {% generation %} blocks wrote, in order; those whose text
  // goes through a macro or variable first are not found.
  std::string render(const Json& variables, int64_t now = -1,
                     std::vector<TextSpan>* generated = nullptr) const;

  const std::string& source() const;

 private:
  struct Program;
  std::unique_ptr<Program> program_;
};

}  // namespace qiao
