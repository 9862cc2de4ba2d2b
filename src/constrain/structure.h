// Texts put together of parts: free text in which tags may stand, a tag that holds a JSON value, a special
// token. What an answer looks like that may call tools is one of these.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "constrain/constraint.h"

namespace qiao::constrain {

struct Structure {
  enum class Kind {
    kLiteral,   // `text`, byte for byte
    kToken,     // the control token spelled `text` ("[TOOL_CALLS]"); where the vocabulary has none, or ends
                // answers with it, its text
    kJson,      // a JSON text of `schema`, spelled as JsonStyle::generation() does
    kFreeText,  // any text without control tokens, also none, in which none of `stops` occurs; a literal that
                // follows and is one of them is the first of them in the text
    kRegex,     // a text that `text` matches as a whole
    kGrammar,   // a text of the grammar `text`, as compile_grammar reads it
    kSequence,  // the children, one after another
    kChoice,    // one of the children
    kRepeat,    // the child, `min` to `max` times (max < 0: any number)
  };
  Kind kind = Kind::kSequence;
  std::string text;
  Json schema;
  std::vector<std::string> stops;
  std::vector<Structure> children;
  int min = 0, max = -1;

  static Structure literal(std::string text);
  static Structure token(std::string text);
  static Structure json(Json schema);
  static Structure free_text(std::vector<std::string> stops);
  static Structure regex(std::string pattern);
  static Structure grammar(std::string source);
  static Structure sequence(std::vector<Structure> children);
  static Structure choice(std::vector<Structure> children);
  static Structure repeat(Structure child, int min, int max);
};

// Errors as of compile_json_schema; a schema's message begins with `where`.
std::shared_ptr<CompiledGrammar> compile_structure(const Structure& structure, std::string_view where,
                                                   const ConstraintLimits& limits = {});

}  // namespace qiao::constrain
