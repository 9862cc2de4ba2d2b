// A tool's arguments as Gemma writes them: {KEY:VALUE,…}, texts between marks of their own.
#pragma once

#include <string>

#include "base/json.h"
#include "constrain/structure.h"

namespace qiao::chat {

// Throws Error(kUnsupported) "WHERE: …" for keywords that cannot be held to in this spelling.
constrain::Structure gemma_structure(const std::string& quote, const Json& parameters,
                                     const std::string& where);

}  // namespace qiao::chat
