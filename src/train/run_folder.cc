#include "train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "base/error.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

int open_to_write(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor < 0) {
    const int code = errno;
    throw_error(code == ENOENT ? ErrorKind::kNotFound : ErrorKind::kIo, "{}: cannot open: {}", path.string(),
                std::strerror(code));
  }
  return descriptor;
}

// AtomicFile's and save_checkpoint's names for what is not in its place yet.
bool is_unfinished(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.ends_with(".part") || name.find(".tmp.") != std::string::npos;
}

void remove_unfinished(const fs::path& folder) {
  std::error_code ignored;
  std::vector<fs::path> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored))
    if (is_unfinished(entry.path())) found.push_back(entry.path());
  for (const fs::path& path : found) fs::remove_all(path, ignored);
}

}  // namespace

RunFolder::RunFolder(const fs::path& run) {
  std::error_code error;
  fs::create_directories(run, error);
  if (error) throw_error(ErrorKind::kIo, "{}: cannot make the folder: {}", run.string(), error.message());
  descriptor_ = open_to_write(run / "lock");
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    char owner[32] = {};
    const ssize_t n = ::pread(descriptor_, owner, sizeof(owner) - 1, 0);
    ::close(descriptor_);
    throw_error(ErrorKind::kUnavailable, "{}: process {} trains here; one at a time may", run.string(),
                n > 0 ? std::string(owner, static_cast<size_t>(n)) : "another");
  }
  const std::string owner = fmt::to_string(::getpid());
  // For the message above alone: a full disk must not keep a run from going on.
  if (::ftruncate(descriptor_, 0) != 0 || ::pwrite(descriptor_, owner.data(), owner.size(), 0) < 0) errno = 0;
  for (const fs::path& folder : {run, run / "checkpoints", run / "model"}) remove_unfinished(folder);
}

RunFolder::~RunFolder() { ::close(descriptor_); }

AppendFile::AppendFile(const fs::path& path) : path_(path), descriptor_(open_to_write(path)) {
  size_ = ::lseek(descriptor_, 0, SEEK_END);
}

AppendFile::~AppendFile() { ::close(descriptor_); }

void AppendFile::append(std::string_view record) {
  pending_.append(record);
  size_t done = 0;
  while (done < pending_.size()) {
    const ssize_t n = ::pwrite(descriptor_, pending_.data() + done, pending_.size() - done,
                               size_ + static_cast<int64_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int code = errno;
      if (::ftruncate(descriptor_, size_) != 0) errno = code;
      throw_error(ErrorKind::kIo, "{}: cannot write: {}", path_.string(), std::strerror(code));
    }
    done += static_cast<size_t>(n);
  }
  size_ += static_cast<int64_t>(pending_.size());
  pending_.clear();
}

}  // namespace qiao::train
