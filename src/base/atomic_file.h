// A file that is written beside its place, synced and renamed: after a crash there is the old one or the new.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace qiao {

class AtomicFile {
 public:
  // `mode`: who may read and write it. Throws Error(kIo) or Error(kNotFound), naming the path, as every
  // member does.
  explicit AtomicFile(const std::filesystem::path& path, unsigned mode = 0644);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();  // removes what commit() has not put into place

  void write(std::string_view bytes);
  void commit();

 private:
  [[noreturn]] void fail(const char* action) const;
  std::filesystem::path path_, beside_;
  int descriptor_ = -1;
};

// After it, what was renamed in a directory is so on the disk too. Where that cannot be had, nothing happens.
void sync_directory(const std::filesystem::path& directory);

}  // namespace qiao
