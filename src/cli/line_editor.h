// Reads lines from a terminal with editing and a history that lasts (libedit).
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace qiao::cli {

class LineEditor {
 public:
  // History is read from and kept in `history_file` (created readable by its owner only); a failure to do so
  // is silent.
  LineEditor(std::string prompt, std::filesystem::path history_file);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  enum class Outcome { kLine, kInterrupted, kEnd };  // a line; Ctrl-C; Ctrl-D
  // A line that ends in a backslash goes on in the next; so does one that opens with """ until """ closes it.
  Outcome read(std::string& text);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qiao::cli
