// Reads the arguments of one call as they are generated and writes them down as JSON.
#pragma once

#include <string>

#include "chat/call_form.h"
#include "chat/json_text.h"
#include "chat/text_match.h"

namespace qiao::chat {

class ArgumentReader {
 public:
  // `form` and `parameters` (the tool's schema) must outlive it.
  ArgumentReader(const CallForm& form, const Json& parameters) : form_(form), parameters_(parameters) {}

  // Takes what it can of `text`'s beginning and appends JSON to `out`. kYes: the arguments are complete, and
  // so is, of kTags, the call. kNo: what is left of `text` is not an argument; the JSON is closed. kMore:
  // more text is needed.
  Match read(std::string& text, std::string& out);

 private:
  Match read_json(std::string& text, std::string& out);
  Match read_tags(std::string& text, std::string& out);
  Match read_gemma(std::string& text, std::string& out);
  bool read_bare_value(std::string& text, std::string& out);
  bool read_json_value(std::string& text, std::string& out);

  const CallForm& form_;
  const Json& parameters_;
  JsonEnd json_;
  enum class At { kBegin, kFirstKey, kKey, kBareBegin, kBare, kValue, kQuoted } at_ = At::kBegin;
  bool any_ = false;      // of kTags: an argument has been written
  std::string brackets_;  // of kGemma: those open
};

}  // namespace qiao::chat
