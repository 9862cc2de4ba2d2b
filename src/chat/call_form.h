// How one template's model spells its calls of tools, as data: what the parser reads and what the grammar of
// an answer is made of.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace qiao::chat {

struct CallForm {
  // What stands between `begin` and `end`:
  enum class Body {
    kCallObject,  // {"name": NAME, ARGUMENTS_KEY: {…}}
    kCallList,    // the same, all calls in one JSON list between begin_all and end_all
    kJson,        // NAME name_end {…}
    kTags,        // NAME name_end (key_begin KEY key_end VALUE value_end)*
    kGemma,       // NAME {KEY:VALUE,…}, texts between `quote` marks
  };
  Body body = Body::kCallObject;
  // Whitespace in these is what the template writes; the parser takes any in its place, also none.
  std::string begin_all, separator, end_all;  // around all calls, between two
  std::string begin, name_end, end;           // around one
  std::string arguments_key = "arguments";
  std::string key_begin, key_end, value_end;
  std::string text_key_end;  // key_end of a value that is text, where they differ (DeepSeek V3.2)
  std::string quote;
  bool bare = false;  // the call has no marker: it is one where the answer begins with it (Llama 3)

  // What an answer's text is searched for: the first of a call's markers. Empty where `bare`.
  std::string_view marker() const;
};

// A call as the form spells it, with texts for the values: for a system text that shows the form. No ids.
std::string write_call(const CallForm& form, std::string_view name, const Json& arguments);
// All the calls of one answer. `calls` are {"function": {"name", "arguments": object}}.
std::string write_calls(const CallForm& form, const Json& calls);

}  // namespace qiao::chat
