// The pushdown automaton of a schema: a state says where in which object or array a text stands, and which
// keys it has.
#pragma once

#include <memory>
#include <string_view>

#include "constrain/automaton.h"
#include "constrain/constraint.h"
#include "constrain/json_schema.h"

namespace qiao::constrain {

// Throws as compile_json_schema does. The schema need not outlive it.
std::unique_ptr<Automaton> make_json_automaton(Json schema, std::string_view where, const JsonStyle& style,
                                               const ConstraintLimits& limits);

}  // namespace qiao::constrain
