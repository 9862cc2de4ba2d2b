#include "base/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace qiao {

void AtomicFile::fail(const char* action) const {
  const int code = errno;
  throw_error(code == ENOENT ? ErrorKind::kNotFound : ErrorKind::kIo, "{}: cannot {}: {}", path_.string(),
              action, std::strerror(code));
}

AtomicFile::AtomicFile(const std::filesystem::path& path, unsigned mode) : path_(path), beside_(path) {
  static std::atomic<uint64_t> serial{0};  // two threads may write the same path at once
  beside_ += fmt::format(".tmp.{}.{}", ::getpid(), serial++);
  // O_NOFOLLOW: in a directory that others may write to, the name could lead anywhere.
  const int flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW;
  descriptor_ = ::open(beside_.c_str(), flags, mode);
  if (descriptor_ < 0) fail("create");
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(beside_.c_str());
}

void AtomicFile::write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(descriptor_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("write");
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

void AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) fail("sync");
  if (::rename(beside_.c_str(), path_.c_str()) != 0) fail("rename into place");
  ::close(descriptor_);
  descriptor_ = -1;
  sync_directory(path_.has_parent_path() ? path_.parent_path() : ".");
}

void sync_directory(const std::filesystem::path& directory) {
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace qiao
