// Files: read-only memory maps whose pages can be given back, bounded reads, and writes that a crash cannot
// tear.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace qiao {

// A file mapped read-only. Move-only; unmapped on destruction. Reading is safe from any thread.
class MappedFile {
 public:
  // Throws Error(kNotFound) or Error(kIo), both naming the path; a directory or an empty file is
  // kInvalidInput.
  static MappedFile open(const std::filesystem::path& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  size_t size() const { return size_; }
  const std::filesystem::path& path() const { return path_; }

  // Tells the kernel that these bytes will be read soon (read-ahead), or are done with: their pages leave
  // this process's resident memory. Both are hints; the bytes stay readable.
  void will_need(size_t offset, size_t length) const;
  void release(size_t offset, size_t length) const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole file. Throws Error(kTooLarge) over max_bytes, before allocating.
std::string read_file(const std::filesystem::path& path, size_t max_bytes = size_t{256} << 20);

// The same of a file that somebody else put there (a model's): a pipe, which could make us wait for ever, or
// a device is kInvalidInput.
std::string read_regular_file(const std::filesystem::path& path, size_t max_bytes);

// Writes beside `path`, syncs, renames over it, syncs the directory: after a crash there is the old file or
// the new.
void write_file_atomically(const std::filesystem::path& path, std::string_view bytes);

// Where Qiao keeps models: $QIAO_HOME, else $XDG_CACHE_HOME/qiao, else ~/.cache/qiao. Not created.
std::filesystem::path qiao_home();

}  // namespace qiao
