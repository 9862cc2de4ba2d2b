#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"

namespace qiao {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

[[noreturn]] void throw_errno(const std::filesystem::path& path, const char* action) {
  const int code = errno;
  throw_error(code == ENOENT ? ErrorKind::kNotFound : ErrorKind::kIo, "{}: cannot {}: {}", path.string(),
              action, std::strerror(code));
}

std::string read_whole(const std::filesystem::path& path, size_t max_bytes, bool only_regular) {
  // O_NONBLOCK as in MappedFile::open.
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | (only_regular ? O_NONBLOCK : 0)));
  if (fd.get() < 0) throw_errno(path, "open");
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) throw_errno(path, "stat");
  if (S_ISDIR(status.st_mode)) throw_error(ErrorKind::kInvalidInput, "{}: is a directory", path.string());
  if (only_regular && !S_ISREG(status.st_mode))
    throw_error(ErrorKind::kInvalidInput, "{}: not a regular file", path.string());
  if (static_cast<uint64_t>(status.st_size) > max_bytes) {
    throw_error(ErrorKind::kTooLarge, "{}: {} bytes, over the limit of {}", path.string(), status.st_size,
                max_bytes);
  }
  std::string text;
  size_t filled = 0;
  while (true) {  // until the end, not until st_size: pipes and /proc say 0
    if (text.size() - filled < 4096)
      text.resize(std::max<size_t>(filled * 2, static_cast<size_t>(status.st_size) + 8192));
    const ssize_t n = ::read(fd.get(), text.data() + filled, text.size() - filled);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno(path, "read");
    if (n == 0) break;
    filled += static_cast<size_t>(n);
    if (filled > max_bytes) {
      throw_error(ErrorKind::kTooLarge, "{}: over the limit of {} bytes", path.string(), max_bytes);
    }
  }
  text.resize(filled);
  return text;
}

}  // namespace

MappedFile MappedFile::open(const std::filesystem::path& path) {
  // O_NONBLOCK: a pipe that nobody writes to must not make us wait before it is refused.
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) throw_errno(path, "open");
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) throw_errno(path, "stat");
  if (!S_ISREG(status.st_mode))
    throw_error(ErrorKind::kInvalidInput, "{}: not a regular file", path.string());
  if (status.st_size == 0) throw_error(ErrorKind::kInvalidInput, "{}: the file is empty", path.string());
  void* data = ::mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) throw_errno(path, "map");
  MappedFile file;
  file.path_ = path;
  file.data_ = static_cast<const std::byte*>(data);
  file.size_ = static_cast<size_t>(status.st_size);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::will_need(size_t offset, size_t length) const {
  if (offset >= size_) return;
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = offset / page * page;
  const size_t end = offset + std::min(length, size_ - offset);
  ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_WILLNEED);
}

void MappedFile::release(size_t offset, size_t length) const {
  if (offset >= size_) return;
  // Whole pages inside the range only: a neighbour tensor may share the first and the last. The file's last
  // page has no neighbour behind it.
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page;
  const size_t end = length >= size_ - offset ? size_ : (offset + length) / page * page;
  if (begin < end) ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

std::string read_file(const std::filesystem::path& path, size_t max_bytes) {
  return read_whole(path, max_bytes, false);
}

std::string read_regular_file(const std::filesystem::path& path, size_t max_bytes) {
  return read_whole(path, max_bytes, true);
}

void write_file_atomically(const std::filesystem::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

std::filesystem::path qiao_home() {
  if (const char* home = std::getenv("QIAO_HOME"); home != nullptr && *home != '\0') return home;
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != '\0') {
    return std::filesystem::path(cache) / "qiao";
  }
  const char* home = std::getenv("HOME");
  return std::filesystem::path(home != nullptr && *home != '\0' ? home : "/tmp") / ".cache" / "qiao";
}

}  // namespace qiao
