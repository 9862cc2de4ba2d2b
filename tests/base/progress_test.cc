#include "base/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <stdlib.h>
#include <unistd.h>

#include <thread>

namespace qiao {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// What a Progress writes.
class Output {
 public:
  Output() : file_(::open_memstream(&text_, &size_)) {}
  ~Output() {
    std::fclose(file_);
    ::free(text_);
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;
  std::FILE* file() { return file_; }
  std::string text() {
    std::fflush(file_);
    return {text_, size_};
  }

 private:
  char* text_ = nullptr;
  size_t size_ = 0;
  std::FILE* file_;
};

TEST(ProgressTest, FormatsBytesInThreeDigits) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1000), "1.00 kB");
  EXPECT_EQ(format_bytes(98362432), "98.4 MB");
  EXPECT_EQ(format_bytes(999999), "1.00 MB");
  EXPECT_EQ(format_bytes(1117320768), "1.12 GB");
  EXPECT_EQ(format_bytes(UINT64_MAX), "18.4 EB");
}

TEST(ProgressTest, WritesALineEachTenthWhereThereIsNoTerminal) {
  Output output;
  Progress progress("x", 1000, Progress::Style::kLines, output.file());
  for (uint64_t done = 0; done <= 1000; done += 50) progress.update(done);
  EXPECT_THAT(output.text(), StartsWith("x: 10% of 1.00 kB\nx: 20% of 1.00 kB\n"));
  EXPECT_THAT(output.text(), HasSubstr("x: 100% of 1.00 kB\n"));
  progress.finish();
  EXPECT_THAT(output.text(), ContainsRegex("x: 1\\.00 kB in [0-9]+(\\.[0-9])? s\n$"));
}

TEST(ProgressTest, SaysWhyItWaits) {
  Output output;
  {
    Progress progress("x", 1000, Progress::Style::kLines, output.file());
    progress.say("busy");
    progress.update(500);
  }
  EXPECT_EQ(output.text(), "x: busy\n");  // half of it was here before
  Output line;
  {
    Progress progress("x", 1000, Progress::Style::kTerminal, line.file());
    progress.say("busy");
  }
  EXPECT_EQ(line.text(), "\rx: busy\x1b[K\r\x1b[K");  // and takes the line away
  Output silence;
  Progress("x", 1000, Progress::Style::kSilent, silence.file()).say("busy");
  EXPECT_EQ(silence.text(), "");
}

TEST(ProgressTest, StaysOnOneLineOfANarrowTerminal) {
  for (const unsigned short columns : {1, 12, 30, 60, 200}) {
    int terminal = -1, line = -1;
    const winsize size{.ws_row = 5, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
    ASSERT_EQ(::openpty(&terminal, &line, nullptr, nullptr, &size), 0);
    std::FILE* file = ::fdopen(line, "w");
    {
      Progress progress("a model of a long name", 1'000'000'000, Progress::Style::kTerminal, file);
      progress.update(0);
      std::this_thread::sleep_for(std::chrono::milliseconds(400));
      progress.update(123'456'789);
      std::string shown;
      pollfd readable{.fd = terminal, .events = POLLIN, .revents = 0};
      // A terminal passes on what is written when it likes: until the second line is there as a whole.
      const auto lines = [&] {
        size_t ends = 0;
        for (size_t at = shown.find("\x1b[K"); at != std::string::npos; at = shown.find("\x1b[K", at + 1))
          ++ends;
        return ends;
      };
      while (lines() < 2 && ::poll(&readable, 1, 60'000) > 0) {
        char text[1000];
        const ssize_t n = ::read(terminal, text, sizeof text);
        if (n <= 0) break;
        shown.append(text, static_cast<size_t>(n));
      }
      ASSERT_EQ(lines(), 2u) << shown;
      for (size_t at = 0; at < shown.size();) {
        const size_t end = std::min(shown.find('\r', at + 1), shown.size());
        const std::string drawn = shown.substr(at, end - at);
        EXPECT_LE(drawn.size() - std::string("\r\x1b[K").size(), columns - 1u) << drawn;
        at = end;
      }
      if (columns == 30) {
        EXPECT_THAT(shown, HasSubstr("12%  123 MB of 1.00 GB"));
      }
    }
    std::fclose(file);
    ::close(terminal);
  }
}

TEST(ProgressTest, DoesNotTellAgainWhatWasThereBefore) {
  Output output;
  Progress progress("x", 1000, Progress::Style::kLines, output.file());
  progress.update(550);
  EXPECT_EQ(output.text(), "");
  progress.update(600);
  EXPECT_EQ(output.text(), "x: 60% of 1.00 kB\n");
}

TEST(ProgressTest, RewritesOneLineOnATerminal) {
  Output output;
  {
    Progress progress("x", 1000, Progress::Style::kTerminal, output.file());
    progress.update(0);
    EXPECT_EQ(output.text(), "\rx: [                        ]   0%  0 B of 1.00 kB\x1b[K");
    progress.update(100);  // too soon to draw
    std::this_thread::sleep_for(std::chrono::milliseconds(120));
    progress.update(500);
    EXPECT_THAT(output.text(), HasSubstr("[============            ]  50%  500 B of 1.00 kB"));
    EXPECT_EQ(output.text().find('\n'), std::string::npos);
  }
  EXPECT_TRUE(output.text().ends_with("\r\x1b[K")) << "a line that is not finished is cleared";
}

TEST(ProgressTest, IsSilentWhereAsked) {
  Output output;
  Progress progress("x", 1000, Progress::Style::kSilent, output.file());
  progress.update(0);
  progress.update(1000);
  progress.finish();
  EXPECT_EQ(output.text(), "");
}

}  // namespace
}  // namespace qiao
