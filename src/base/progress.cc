#include "base/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace qiao {
namespace {

constexpr std::chrono::milliseconds kRedraw{100};

std::string format_time(double seconds) {
  const auto whole = static_cast<uint64_t>(std::clamp(seconds, 0.0, 359999.0));
  if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

// Columns of the terminal behind `out`; many where there is none to ask.
size_t columns_of(std::FILE* out) {
  winsize size{};
  return ::ioctl(::fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 1000;
}

}  // namespace

Progress::Style Progress::style_of_stderr() {
  return ::isatty(STDERR_FILENO) != 0 ? Style::kTerminal : Style::kLines;
}

Progress::Progress(std::string label, uint64_t total, Style style, std::FILE* out, std::string unit)
    : label_(std::move(label)),
      total_(total),
      style_(style),
      out_(out),
      unit_(std::move(unit)),
      begin_(Clock::now()),
      last_drawn_(begin_) {}

Progress::~Progress() {
  if (style_ == Style::kTerminal && (started_ || said_) && !finished_) {
    std::fputs(fmt::format("\r\x1b[K").c_str(), out_);
    std::fflush(out_);
  }
}

void Progress::update(uint64_t done) {
  const Clock::time_point now = Clock::now();
  if (!started_) {
    started_ = true;
    before_ = done;
    begin_ = now;
    last_drawn_ = now - kRedraw;
    if (total_ > 0) last_tenth_ = static_cast<int>(std::min(done, total_) * 10 / total_);
  }
  done_ = done;
  if (style_ == Style::kTerminal) {
    if (now - last_drawn_ >= kRedraw) draw(done, now);
  } else if (style_ == Style::kLines && total_ > 0) {
    const int tenth = static_cast<int>(std::min(done, total_) * 10 / total_);
    if (tenth > last_tenth_) {
      last_tenth_ = tenth;
      std::fputs(fmt::format("{}: {}% of {}\n", label_, tenth * 10, format(total_)).c_str(), out_);
      std::fflush(out_);
    }
  }
}

void Progress::draw(uint64_t done, Clock::time_point now) {
  last_drawn_ = now;
  const double seconds = std::chrono::duration<double>(now - begin_).count();
  const double speed = seconds > 0.3 && done > before_ ? static_cast<double>(done - before_) / seconds : 0;
  std::string bar, amount = format(done), rate;
  if (total_ > 0) {
    constexpr int kWidth = 24;
    const double share = static_cast<double>(std::min(done, total_)) / static_cast<double>(total_);
    const int filled = static_cast<int>(share * kWidth);
    bar = fmt::format("[{:=<{}}{: <{}}] ", "", filled, "", kWidth - filled);
    amount = fmt::format("{:3}%  {} of {}", static_cast<int>(share * 100), format(std::min(done, total_)),
                         format(total_));
  }
  if (speed > 0) rate += fmt::format("  {}/s", format(static_cast<uint64_t>(speed)));
  if (speed > 0 && total_ > done) rate += "  ETA " + format_time(static_cast<double>(total_ - done) / speed);
  // A line that wraps could not be drawn over: on a narrow terminal the bar goes first, then the end.
  const size_t columns = columns_of(out_);
  std::string line = label_ + ": " + bar + amount + rate;
  if (line.size() >= columns) line = label_ + ": " + amount + rate;
  if (line.size() >= columns) line = label_ + ": " + amount;
  if (line.size() >= columns) line = amount;
  draw_line(std::move(line));
}

std::string Progress::format(uint64_t amount) const {
  return unit_.empty() ? format_bytes(amount) : format_count(amount) + " " + unit_;
}

void Progress::draw_line(std::string line) {
  line.resize(std::min(line.size(), columns_of(out_) - 1));
  std::fputs(fmt::format("\r{}\x1b[K", line).c_str(), out_);
  std::fflush(out_);
}

void Progress::say(const std::string& what) {
  if (style_ == Style::kTerminal) {
    said_ = true;
    draw_line(label_ + ": " + what);
  } else if (style_ == Style::kLines) {
    std::fputs(fmt::format("{}: {}\n", label_, what).c_str(), out_);
    std::fflush(out_);
  }
}

void Progress::finish() {
  finished_ = true;
  if (style_ == Style::kSilent) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
  std::fputs(fmt::format("{}{}: {} in {:.{}f} s\n", style_ == Style::kTerminal ? "\r\x1b[K" : "", label_,
                         format(total_ > 0 ? total_ : done_), seconds, seconds < 10 ? 1 : 0)
                 .c_str(),
             out_);
  std::fflush(out_);
}

}  // namespace qiao
