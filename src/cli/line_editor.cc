#include "cli/line_editor.h"

#include <histedit.h>
#include <sys/stat.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <string_view>
#include <system_error>
#include <utility>

namespace qiao::cli {

struct LineEditor::State {
  std::string prompt;
  std::filesystem::path file;
  EditLine* editor = nullptr;
  History* history = nullptr;
  bool continued = false;
};

namespace {

constexpr int kHistoryLines = 1000;
constexpr std::string_view kQuotes = "\"\"\"";

}  // namespace

LineEditor::LineEditor(std::string prompt, std::filesystem::path history_file)
    : state_(std::make_unique<State>()) {
  // Editing needs to know what one character is; a bare container has no locale set.
  if (std::setlocale(LC_CTYPE, "") == nullptr || std::string_view(std::setlocale(LC_CTYPE, nullptr)) == "C") {
    std::setlocale(LC_CTYPE, "C.UTF-8");
  }
  State& state = *state_;
  state.prompt = std::move(prompt);
  state.file = std::move(history_file);
  state.editor = el_init("qiao", stdin, stdout, stderr);
  state.history = history_init();
  HistEvent event;
  history(state.history, &event, H_SETSIZE, kHistoryLines);
  history(state.history, &event, H_SETUNIQUE, 1);
  history(state.history, &event, H_LOAD, state.file.c_str());
  el_set(state.editor, EL_CLIENTDATA, &state);
  el_set(
      state.editor, EL_PROMPT, +[](EditLine* editor) -> char* {
        State* self = nullptr;
        el_get(editor, EL_CLIENTDATA, &self);
        static char continuation[] = "… ";
        return self->continued ? continuation : self->prompt.data();
      });
  el_set(state.editor, EL_EDITOR, "emacs");
  el_set(state.editor, EL_HIST, history, state.history);
  el_set(state.editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  el_source(state.editor, nullptr);  // the user's ~/.editrc
}

LineEditor::~LineEditor() {
  HistEvent event;
  std::error_code ignored;
  std::filesystem::create_directories(state_->file.parent_path(), ignored);
  const mode_t before = ::umask(0077);
  history(state_->history, &event, H_SAVE, state_->file.c_str());
  ::umask(before);
  history_end(state_->history);
  el_end(state_->editor);
}

LineEditor::Outcome LineEditor::read(std::string& text) {
  text.clear();
  State& state = *state_;
  bool quoted = false;
  state.continued = false;
  while (true) {
    int count = 0;
    errno = 0;
    const char* line = el_gets(state.editor, &count);
    if (line == nullptr || count <= 0) {
      if (count < 0 && errno == EINTR) {
        std::printf("\n");
        return Outcome::kInterrupted;
      }
      return Outcome::kEnd;
    }
    std::string_view part(line, static_cast<size_t>(count));
    if (part.ends_with('\n')) part.remove_suffix(1);
    if (!quoted && text.empty() && part.starts_with(kQuotes)) {
      quoted = true;
      part.remove_prefix(kQuotes.size());
    }
    if (quoted && part.ends_with(kQuotes)) {
      text += part.substr(0, part.size() - kQuotes.size());
      break;
    }
    if (quoted || part.ends_with('\\')) {
      text += quoted ? part : part.substr(0, part.size() - 1);
      text += '\n';
      state.continued = true;
      continue;
    }
    text += part;
    break;
  }
  HistEvent event;
  if (text.find_first_not_of(" \t\n") != std::string::npos && text.find('\n') == std::string::npos) {
    history(state.history, &event, H_ENTER, text.c_str());
  }
  return Outcome::kLine;
}

}  // namespace qiao::cli
