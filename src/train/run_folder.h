// RUN: the folder of a run, which one process at a time trains in, and its files that only grow.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace qiao::train {

// Makes the folder and holds RUN/lock until it is destroyed or the process ends, however it ends. Removes
// what a process that was killed left half written.
class RunFolder {
 public:
  // Throws Error(kUnavailable), naming the process, where another holds it; Error(kIo).
  explicit RunFolder(const std::filesystem::path& run);
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;
  ~RunFolder();

 private:
  int descriptor_ = -1;
};

// Grows record by record and never holds a part of one, whatever fails. Not thread-safe.
class AppendFile {
 public:
  // Goes on at the end of what is there. Throws Error(kIo) or Error(kNotFound), naming the path.
  explicit AppendFile(const std::filesystem::path& path);
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  ~AppendFile();

  // Throws Error(kIo) where it cannot be written now (a full disk): it is kept, and goes before the next one.
  void append(std::string_view record);

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  int64_t size_ = 0;     // of whole records
  std::string pending_;  // not written yet
};

}  // namespace qiao::train
