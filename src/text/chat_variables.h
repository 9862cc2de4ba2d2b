// What a chat template is given, as Transformers' apply_chat_template gives it.
#pragma once

#include "base/json.h"

namespace qiao {

// Completes the variables of a render: tools and documents are none where absent (not undefined),
// add_generation_prompt is false; a message's reasoning stands under "reasoning_content" and "thinking",
// whichever of "reasoning_content", "thinking" and "reasoning" it came by. Throws Error(kInvalidInput) where
// messages are not a list of objects.
Json complete_chat_variables(Json variables);

}  // namespace qiao
