// What a constraint says of a text.
#pragma once

#include <string>
#include <string_view>

#include "constrain/constraint.h"

namespace qiao::testing {

inline std::shared_ptr<constrain::CompiledGrammar> schema_of(std::string_view text,
                                                             const constrain::JsonStyle& style = {}) {
  return constrain::compile_json_schema(parse_json(text, "schema"), "schema", style);
}

// "accepted", or "rejected at byte N".
inline std::string judge(const std::shared_ptr<constrain::CompiledGrammar>& grammar, std::string_view text) {
  constrain::ConstraintState state(grammar);
  const size_t taken = state.accept_bytes(text);
  if (taken == text.size() && state.can_end()) return "accepted";
  return "rejected at byte " + std::to_string(taken);
}

inline bool accepts(const std::shared_ptr<constrain::CompiledGrammar>& grammar, std::string_view text) {
  return judge(grammar, text) == "accepted";
}

}  // namespace qiao::testing
