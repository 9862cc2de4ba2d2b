#include "base/subprocess.h"

#include <gtest/gtest.h>

#include <chrono>

#include "support/expect_error.h"

namespace qiao {
namespace {

constexpr std::chrono::seconds kLong{30};

std::vector<std::string> shell(const std::string& text) { return {"/bin/sh", "-c", text}; }

TEST(PipedProcessTest, ALineInALineOut) {
  PipedProcess process(shell("while read -r line; do echo \"<$line>\"; done"));
  EXPECT_EQ(process.exchange("one", kLong), "<one>");
  EXPECT_EQ(process.exchange("", kLong), "<>");
  EXPECT_EQ(process.exchange("{\"a\": 1}", kLong), "<{\"a\": 1}>");
}

// Both pipes are full at some time: neither side may wait for the other for ever.
TEST(PipedProcessTest, LinesLargerThanAPipeHolds) {
  PipedProcess process({"cat"});
  const std::string line(3 << 20, 'x');
  for (int i = 0; i < 3; ++i) EXPECT_EQ(process.exchange(line, kLong), line);
  PipedProcess loud(shell("while read -r line; do head -c 500000 /dev/zero >&2; echo done; done"));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(loud.exchange("x", kLong), "done");
}

TEST(PipedProcessTest, TellsHowAProgramEnded) {
  PipedProcess bad(shell("read -r line; echo 'no such column' >&2; exit 3"));
  EXPECT_QIAO_ERROR(bad.exchange("x", kLong), kIo, "exit code 3", "no such column");
  EXPECT_QIAO_ERROR(bad.exchange("x", kLong), kIo, "exit code 3");
  PipedProcess killed(shell("read -r line; kill -9 $$"));
  EXPECT_QIAO_ERROR(killed.exchange("x", kLong), kIo, "signal 9");
  PipedProcess none({"no-such-program-of-qiao"});
  EXPECT_QIAO_ERROR(none.exchange("x", kLong), kIo, "no-such-program-of-qiao", "no such program");
  PipedProcess at_once(shell("exit 0"));
  EXPECT_QIAO_ERROR(at_once.exchange(std::string(1 << 20, 'x'), kLong), kIo, "exit code 0");
}

TEST(PipedProcessTest, KeepsToTheLimits) {
  // It has answered once, so that its words are there before the limit begins.
  PipedProcess slow(shell("read -r line; echo thinking >&2; echo yes; read -r line; sleep 600"));
  EXPECT_EQ(slow.exchange("x", kLong), "yes");
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_QIAO_ERROR(slow.exchange("x", std::chrono::milliseconds(300)), kIo, "within 300 ms", "thinking");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(300));
  PipedProcess wide({"cat"});
  EXPECT_QIAO_ERROR(wide.exchange(std::string(1000, 'x'), kLong, 100), kIo, "more than 100 bytes");
}

TEST(PipedProcessTest, RefusesWhatNobodyAskedFor) {
  // In one write: lines that come one by one would be taken for the answers to the next ones.
  PipedProcess chatty(shell("while read -r line; do printf '1\\ndebug: here\\n\\n'; done"));
  EXPECT_EQ(chatty.exchange("x", kLong), "1");
  EXPECT_QIAO_ERROR(chatty.exchange("x", kLong), kIo, "nobody asked for (debug: here)");
}

// What a shell has started goes with it.
TEST(PipedProcessTest, EndsWithTheObject) {
  const auto begin = std::chrono::steady_clock::now();
  { const PipedProcess stays(shell("sleep 600; sleep 600")); }
  { const PipedProcess ends({"cat"}); }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(300));
}

}  // namespace
}  // namespace qiao
