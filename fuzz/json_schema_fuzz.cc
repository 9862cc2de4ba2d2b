// Any bytes as a schema, an expression or a grammar, and as a text for the automaton that they make. The
// first byte says which; a line that is only "---" ends the source and begins the text.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "constrain/constraint.h"

namespace {

using namespace qiao::constrain;

std::shared_ptr<CompiledGrammar> compile(char kind, std::string_view source) {
  ConstraintLimits limits;
  limits.machine.max_states = 20'000;
  limits.max_schema_nodes = 500;
  if (kind == 'r') return compile_regex(source, "fuzz", limits);
  if (kind == 'g') return compile_grammar(source, "fuzz", limits);
  const JsonStyle style = kind == 'f' ? JsonStyle::generation() : JsonStyle::any();
  return compile_json_schema(qiao::parse_json(source, "fuzz", {.max_bytes = size_t{1} << 16}), "fuzz", style,
                             limits);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto table =
      std::make_shared<TokenTable>(std::vector<std::string>{"{", "}", "\"", "a", "\":", " ", "1", "[", "]",
                                                            ",", "\\u00", "true", "\xC3", "<end>"},
                                   std::vector<qiao::TokenId>{13});
  if (size == 0) return 0;
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t cut = std::min(all.find("\n---\n"), size);
  const std::string_view source = all.substr(1, cut - std::min<size_t>(cut, 1));
  const std::string_view text = cut + 5 <= size ? all.substr(cut + 5) : std::string_view();
  try {
    ConstraintState state(compile(all[0], source), table);
    std::vector<uint32_t> mask(table->words());
    for (const char c : text) {
      if (state.accept_bytes(std::string_view(&c, 1)) == 0) break;
      state.mask(mask);
      // A prefix that was taken can be completed: some byte may follow, or the end.
      QIAO_ASSERT(state.can_end() || !state.must_end());
      state.forced_bytes(64);
    }
  } catch (const qiao::Error& e) {
    QIAO_ASSERT(std::string_view(e.what()).find('\n') == std::string_view::npos);
  }
  return 0;
}
