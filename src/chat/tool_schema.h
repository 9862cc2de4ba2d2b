// What a tool's parameters say of one argument: how calls that are not JSON spell it.
#pragma once

#include <string_view>

#include "base/json.h"

namespace qiao::chat {

// The tool's function object in OpenAI's list; null where there is none of that name.
const Json* find_function(const Json& tools, std::string_view name);
// The function's parameters; an object without any where it names none.
Json parameters_of(const Json& function);
// Whether the value stands as bare text: the schema takes text alone and says nothing more of it. Other
// values stand as JSON. An argument that the schema does not name is bare text.
bool is_bare_text(const Json& parameters, std::string_view key);
// The texts of an enum of texts alone (or a const one); empty where it is none. They stand bare too.
Json bare_choices(const Json& schema);

}  // namespace qiao::chat
