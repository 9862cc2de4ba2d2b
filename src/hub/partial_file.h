// A file that grows piece by piece beside the place it is meant for, and appears there whole or not at all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace qiao {

// Owns the descriptor and, while it lives, the right to write: a second process that opens the same file
// waits.
class PartialFile {
 public:
  // Opens or creates `path`, and its folders; what it holds is kept. Throws Error(kIo).
  explicit PartialFile(std::filesystem::path path);
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  uint64_t size() const { return size_; }
  void append(std::string_view bytes);  // throws Error(kTooLarge) where the disk is full
  void truncate(uint64_t size);
  // Syncs, renames to `destination` (made with its folders, on the same file system), syncs the folder. Last
  // call.
  void publish(const std::filesystem::path& destination);

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

// Throws Error(kTooLarge), with both sizes, where the file system of `folder` (or of the nearest folder above
// it that exists) has less than `bytes` free.
void require_disk_space(const std::filesystem::path& folder, uint64_t bytes);

}  // namespace qiao
