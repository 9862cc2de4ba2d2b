#include "base/file.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/expect_error.h"
#include "support/temporary_directory.h"

namespace qiao {
namespace {

using testing::TemporaryDirectory;

std::string text_of(std::span<const std::byte> bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

// Bytes of `file`'s mapping that are resident in this process, from the kernel.
size_t resident_bytes(const MappedFile& file) {
  std::ifstream maps("/proc/self/smaps");
  const std::string name = std::filesystem::canonical(file.path()).string();
  bool ours = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.find('-') < line.find(' ')) ours = line.ends_with(name);
    size_t kilobytes = 0;
    if (ours && std::sscanf(line.c_str(), "Rss: %zu kB", &kilobytes) == 1) return kilobytes * 1024;
  }
  ADD_FAILURE() << "no mapping of " << name;
  return 0;
}

TEST(MappedFileTest, ShowsTheBytes) {
  const TemporaryDirectory directory;
  const MappedFile file = MappedFile::open(directory.write("a", std::string_view("one\0two", 7)));
  EXPECT_EQ(file.size(), 7u);
  EXPECT_EQ(text_of(file.bytes()), std::string("one\0two", 7));
  EXPECT_EQ(file.path(), directory.path() / "a");
}

TEST(MappedFileTest, NamesWhatCannotBeMapped) {
  const TemporaryDirectory directory;
  EXPECT_QIAO_ERROR(MappedFile::open(directory.path() / "absent"), kNotFound, "absent", "No such file");
  EXPECT_QIAO_ERROR(MappedFile::open(directory.path()), kInvalidInput, directory.path().string(),
                    "not a regular file");
  EXPECT_QIAO_ERROR(MappedFile::open(directory.write("empty", "")), kInvalidInput, "empty", "empty");
  const auto pipe = directory.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_QIAO_ERROR(MappedFile::open(pipe), kInvalidInput, "pipe",
                    "not a regular file");  // and does not wait
}

TEST(MappedFileTest, MovesItsMapping) {
  const TemporaryDirectory directory;
  MappedFile first = MappedFile::open(directory.write("a", "aaa"));
  MappedFile second = std::move(first);
  EXPECT_EQ(text_of(second.bytes()), "aaa");
  EXPECT_EQ(first.size(), 0u);
  second = MappedFile::open(directory.write("b", "bb"));
  EXPECT_EQ(text_of(second.bytes()), "bb");
  MappedFile& self = second;
  second = std::move(self);
  EXPECT_EQ(text_of(second.bytes()), "bb");
}

TEST(MappedFileTest, ReleaseGivesPagesBackAndKeepsTheBytes) {
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  constexpr size_t kPages = 64;
  const TemporaryDirectory directory;
  std::string bytes(kPages * page, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i / page + i);
  const MappedFile file = MappedFile::open(directory.write("a", bytes));
  EXPECT_EQ(text_of(file.bytes()), bytes);
  EXPECT_EQ(resident_bytes(file), bytes.size());
  file.release(0, bytes.size());
  EXPECT_EQ(resident_bytes(file), 0u);
  EXPECT_EQ(text_of(file.bytes()), bytes);
  // A range's first and last page belong to neighbours, too: only whole pages go.
  file.release(page - 1, 2 * page + 2);
  EXPECT_EQ(resident_bytes(file), bytes.size() - 2 * page);
  file.release(page / 2, page);
  EXPECT_EQ(resident_bytes(file), bytes.size() - 2 * page);
  file.release(10 * page + 1, ~size_t{0});  // beyond the end: to the end
  file.will_need(bytes.size() + page, 5);
  file.will_need(page + 3, ~size_t{0});
  EXPECT_EQ(text_of(file.bytes()), bytes);
}

// The last page of a file is rarely full; release must be able to give it back.
TEST(MappedFileTest, ReleaseOfTheWholeFileLeavesNothing) {
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const TemporaryDirectory directory;
  const MappedFile file = MappedFile::open(directory.write("a", std::string(4 * page + 17, 'x')));
  EXPECT_EQ(text_of(file.bytes()).size(), 4 * page + 17);
  EXPECT_EQ(resident_bytes(file), 5 * page);
  file.release(0, file.size());
  EXPECT_EQ(resident_bytes(file), 0u);
}

TEST(ReadFileTest, ReadsTextAndHoldsTheLimit) {
  const TemporaryDirectory directory;
  const auto path = directory.write("a", std::string(10'000, 'x'));
  EXPECT_EQ(read_file(path), std::string(10'000, 'x'));
  EXPECT_EQ(read_file(path, 10'000).size(), 10'000u);
  EXPECT_QIAO_ERROR(read_file(path, 9'999), kTooLarge, "10000 bytes", "9999");
  EXPECT_EQ(read_file(directory.write("empty", "")), "");
  EXPECT_QIAO_ERROR(read_file(directory.path() / "absent"), kNotFound, "absent");
  EXPECT_QIAO_ERROR(read_file(directory.path()), kInvalidInput, "is a directory");
}

TEST(ReadFileTest, AFileOfUnknownLengthIsReadToItsEndOrTheLimit) {
  EXPECT_GT(read_file("/proc/self/maps").size(), 100u);  // its stated length is 0
  EXPECT_QIAO_ERROR(read_file("/dev/zero", 1 << 20), kTooLarge, "/dev/zero", "1048576");
  const TemporaryDirectory directory;
  const auto pipe = directory.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::thread writer([&] { std::ofstream(pipe) << std::string(300'000, 'y'); });
  EXPECT_EQ(read_file(pipe), std::string(300'000, 'y'));
  writer.join();
}

TEST(ReadFileTest, OfSomebodyElseOnlyRegularFilesAreRead) {
  const TemporaryDirectory directory;
  EXPECT_EQ(read_regular_file(directory.write("a", "xyz"), 3), "xyz");
  const auto pipe = directory.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  // Nobody writes to it: this must not wait.
  EXPECT_QIAO_ERROR(read_regular_file(pipe, 100), kInvalidInput, "pipe", "not a regular file");
  EXPECT_QIAO_ERROR(read_regular_file("/dev/zero", 100), kInvalidInput, "not a regular file");
  EXPECT_QIAO_ERROR(read_regular_file(directory.path(), 100), kInvalidInput, "is a directory");
}

TEST(WriteFileTest, ReplacesTheWholeFile) {
  const TemporaryDirectory directory;
  const auto path = directory.write("a", "something longer");
  write_file_atomically(path, "new");
  EXPECT_EQ(read_file(path), "new");
  write_file_atomically(path, "");
  EXPECT_EQ(read_file(path), "");
  // Nothing else is left in the directory.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1);
}

TEST(WriteFileTest, AFailureLeavesTheOldFileAndNoOther) {
  const TemporaryDirectory directory;
  EXPECT_QIAO_ERROR(write_file_atomically(directory.path() / "absent" / "a", "x"), kNotFound, "absent");
  std::filesystem::create_directories(directory.path() / "folder" / "inside");
  EXPECT_QIAO_ERROR(write_file_atomically(directory.path() / "folder", "x"), kIo, "folder");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1);
}

TEST(WriteFileTest, ALinkIsReplacedAndWhatItLedToStays) {
  const TemporaryDirectory directory;
  const auto target = directory.write("target", "old");
  std::filesystem::create_symlink(target, directory.path() / "link");
  write_file_atomically(directory.path() / "link", "new");
  EXPECT_EQ(read_file(target), "old");
  EXPECT_EQ(read_file(directory.path() / "link"), "new");
}

class HomeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"QIAO_HOME", "XDG_CACHE_HOME", "HOME"}) {
      const char* value = ::getenv(name);
      saved_.emplace_back(name, value == nullptr ? std::optional<std::string>() : value);
      ::unsetenv(name);
    }
  }
  void TearDown() override {
    for (const auto& [name, value] : saved_) value ? ::setenv(name, value->c_str(), 1) : ::unsetenv(name);
  }

 private:
  std::vector<std::pair<const char*, std::optional<std::string>>> saved_;
};

TEST_F(HomeTest, IsTheFirstOfThreeSettings) {
  EXPECT_EQ(qiao_home(), "/tmp/.cache/qiao");
  ::setenv("HOME", "/users/x", 1);
  EXPECT_EQ(qiao_home(), "/users/x/.cache/qiao");
  ::setenv("XDG_CACHE_HOME", "/cache", 1);
  EXPECT_EQ(qiao_home(), "/cache/qiao");
  ::setenv("QIAO_HOME", "/models", 1);
  EXPECT_EQ(qiao_home(), "/models");
  ::setenv("QIAO_HOME", "", 1);
  EXPECT_EQ(qiao_home(), "/cache/qiao");
}

}  // namespace
}  // namespace qiao
