// A call whose marks the model has left out: an answer that begins with the call's JSON object, bare or in a
// fence. Small models write that, most of all those that were made for code.
#pragma once

#include <string>
#include <string_view>

#include "chat/call_form.h"
#include "chat/json_text.h"
#include "chat/text_match.h"

namespace qiao::chat {

// Reads one as its text arrives. It is a call where the object is of a name and arguments alone, the name is
// a tool's, the arguments are valid for its parameters, and nothing follows on the line.
class UnmarkedCall {
 public:
  // Both must outlive it.
  UnmarkedCall(const CallForm& form, const Json& tools) : form_(form), tools_(tools) {}

  // `text`: all that has arrived from where the call would begin. kMore: it may still become one; never where
  // `final` says that no more will come.
  Match read(std::string_view text, bool final);

  // After kYes:
  const std::string& name() const { return name_; }
  const std::string& arguments() const { return arguments_; }  // as they stand
  size_t bytes() const { return bytes_; }                      // of the text, with what is around the object

 private:
  Match read_head(std::string_view text);
  bool read_object(std::string_view object);
  Match read_end(std::string_view text, bool final);

  const CallForm& form_;
  const Json& tools_;
  enum class At { kHead, kObject, kEnd } at_ = At::kHead;
  bool fenced_ = false;
  size_t begin_ = 0, end_ = 0;  // of the object; `end_` moves as it arrives
  JsonEnd json_;
  std::string name_, arguments_;
  size_t bytes_ = 0;
};

}  // namespace qiao::chat
