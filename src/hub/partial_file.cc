#include "hub/partial_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/progress.h"

namespace qiao {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const char* action) {
  const int code = errno;
  throw_error(code == ENOSPC ? ErrorKind::kTooLarge : ErrorKind::kIo, "{}: cannot {}: {}", path.string(),
              action, std::strerror(code));
}

void make_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw_error(ErrorKind::kIo, "{}: cannot make the folder: {}", folder.string(), error.message());
}

}  // namespace

PartialFile::PartialFile(std::filesystem::path path) : path_(std::move(path)) {
  while (true) {
    make_folder(path_.parent_path());
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd_ < 0) fail(path_, "create");
    struct stat mine {};
    struct stat named {};
    while (::flock(fd_, LOCK_EX) != 0) {
      if (errno != EINTR) fail(path_, "lock");
    }
    // While this process waited, the one before may have renamed the file away: then begin anew.
    if (::fstat(fd_, &mine) == 0 && ::stat(path_.c_str(), &named) == 0 && mine.st_ino == named.st_ino) {
      size_ = static_cast<uint64_t>(mine.st_size);
      break;
    }
    ::close(fd_);
  }
  if (::lseek(fd_, 0, SEEK_END) < 0) fail(path_, "seek");
}

PartialFile::~PartialFile() {
  if (fd_ >= 0) ::close(fd_);
}

void PartialFile::append(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(path_, "write");
    size_ += static_cast<uint64_t>(n);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

void PartialFile::truncate(uint64_t size) {
  if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) fail(path_, "truncate");
  if (::lseek(fd_, 0, SEEK_END) < 0) fail(path_, "seek");
  size_ = size;
}

void PartialFile::publish(const std::filesystem::path& destination) {
  if (::fsync(fd_) != 0) fail(path_, "sync");
  make_folder(destination.parent_path());
  if (::rename(path_.c_str(), destination.c_str()) != 0) fail(destination, "rename into place");
  const int folder = ::open(destination.parent_path().c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY);
  if (folder >= 0) {
    ::fsync(folder);
    ::close(folder);
  }
}

void require_disk_space(const std::filesystem::path& folder, uint64_t bytes) {
  std::filesystem::path place = folder;
  while (!std::filesystem::exists(place) && place.has_parent_path() && place != place.parent_path()) {
    place = place.parent_path();
  }
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(place.empty() ? "." : place, error);
  if (!error && space.available < bytes) {
    throw_error(ErrorKind::kTooLarge, "{}: {} are needed, {} are free on that disk", folder.string(),
                format_bytes(bytes), format_bytes(space.available));
  }
}

}  // namespace qiao
