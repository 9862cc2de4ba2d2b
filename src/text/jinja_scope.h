// Gives every variable of a parsed template its slot.
#pragma once

#include "text/jinja_ast.h"

namespace qiao::jinja {

// jinja2's rules: a name set anywhere in a scope belongs to that scope, which starts with the outer value;
// macros see the variables around them; a name nobody sets is the render's. Throws Error(kInvalidInput) "line
// N: …" for an unknown filter or test outside of a condition, a break outside of a loop, a loop variable
// called "loop".
void resolve(Template& source);

}  // namespace qiao::jinja
