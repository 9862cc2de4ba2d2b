// The input up to the first "\n---\n" is a template, the rest its variables as JSON.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "text/chat_template.h"

namespace {

constexpr qiao::TemplateLimits kLimits{
    .max_source_bytes = 4096, .max_output_bytes = 1 << 16, .max_steps = 20000, .max_depth = 50};

qiao::Json variables_of(std::string_view text) {
  const qiao::Json fallback = {
      {"messages", {{{"role", "user"}, {"content", "Hi 你"}}}}, {"n", 3}, {"l", {1, 2.5, "x"}}};
  try {
    qiao::Json variables = qiao::parse_json(text, "variables", {.max_bytes = 4096, .max_depth = 32});
    return variables.is_object() ? variables : fallback;
  } catch (const qiao::Error&) {
    return fallback;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t split = input.find("\n---\n");
  const std::string_view rest =
      split == std::string_view::npos ? std::string_view() : input.substr(split + 5);
  try {
    qiao::ChatTemplate(input.substr(0, split), "fuzz", kLimits).render(variables_of(rest), 0);
  } catch (const qiao::Error&) {
    return 0;  // the one way in which bad input may end
  }
  return 0;
}
