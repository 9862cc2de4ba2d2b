// A progress bar of bytes, or of what else is counted: one line rewritten in place on a terminal, a line each
// tenth elsewhere, or silence.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

#include "base/units.h"

namespace qiao {

class Progress {
 public:
  enum class Style { kTerminal, kLines, kSilent };
  // kTerminal where stderr is one, else kLines.
  static Style style_of_stderr();

  // `total` 0 where it is not known. Writes to `out`, which must outlive this. One thread at a time. `unit`
  // is what is counted ("requests"); empty: bytes.
  Progress(std::string label, uint64_t total, Style style, std::FILE* out = stderr, std::string unit = {});
  ~Progress();  // leaves the terminal's line empty where finish() was not reached: the error's line comes
                // next
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `done` of the total are here, of which those at the first call were here before: they do not count
  // as speed. Cheap: draws ten times a second at most.
  void update(uint64_t done);
  // Says why it does not go on, in the line's place on a terminal: "LABEL: WHAT".
  void say(const std::string& what);
  // Replaces the line with "LABEL: 92.9 MB in 3 s".
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  void draw(uint64_t done, Clock::time_point now);
  void draw_line(std::string line);
  std::string format(uint64_t amount) const;

  std::string label_;
  uint64_t total_;
  Style style_;
  std::FILE* out_;
  std::string unit_;
  bool started_ = false;
  bool said_ = false;
  bool finished_ = false;
  uint64_t before_ = 0;
  uint64_t done_ = 0;
  int last_tenth_ = 0;
  Clock::time_point begin_;
  Clock::time_point last_drawn_;
};

}  // namespace qiao
