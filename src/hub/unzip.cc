#include "hub/unzip.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zip.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/quote.h"

namespace qiao {
namespace {

constexpr zip_int64_t kMaxMembers = 1000;
constexpr size_t kMaxMemberName = 255, kMaxMemberDepth = 8;

using Archive = std::unique_ptr<zip_t, void (*)(zip_t*)>;
using Member = std::unique_ptr<zip_file_t, int (*)(zip_file_t*)>;

// Whether every component is a plain name, so that the path stays below the folder.
bool is_plain(std::string_view name) {
  if (name.empty() || name.size() > kMaxMemberName || name.find('\\') != std::string_view::npos) return false;
  size_t depth = 0;
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find('/', at), name.size());
    const std::string_view component = name.substr(at, end - at);
    if (component.empty() || component == "." || component == ".." || ++depth > kMaxMemberDepth) return false;
    at = end + 1;
  }
  return true;
}

// Files and folders alone, as Unix says it; other systems' archives have no links.
bool is_ordinary(zip_t* archive, zip_uint64_t index) {
  zip_uint8_t system = 0;
  zip_uint32_t attributes = 0;
  if (zip_file_get_external_attributes(archive, index, 0, &system, &attributes) != 0) return false;
  const mode_t kind = static_cast<mode_t>(attributes >> 16) & S_IFMT;
  return system != ZIP_OPSYS_UNIX || kind == 0 || kind == S_IFREG || kind == S_IFDIR;
}

class NewFile {
 public:
  explicit NewFile(const std::filesystem::path& path)
      : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644)) {
    if (fd_ < 0) throw_error(ErrorKind::kIo, "{}: cannot be made: {}", path.string(), std::strerror(errno));
  }
  ~NewFile() { ::close(fd_); }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  void write(const char* bytes, size_t count) {
    while (count > 0) {
      const ssize_t n = ::write(fd_, bytes, count);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        throw_error(errno == ENOSPC ? ErrorKind::kTooLarge : ErrorKind::kIo, "{}: cannot be written: {}",
                    path_.string(), std::strerror(errno));
      }
      bytes += n;
      count -= static_cast<size_t>(n);
    }
  }
  void sync() {
    if (::fsync(fd_) != 0)
      throw_error(ErrorKind::kIo, "{}: cannot be synced: {}", path_.string(), std::strerror(errno));
  }

 private:
  std::filesystem::path path_;
  int fd_;
};

}  // namespace

void unzip(const std::filesystem::path& path, const std::filesystem::path& folder, uint64_t bytes) {
  const auto refuse = [&](std::string_view member, std::string_view what) {
    throw_error(ErrorKind::kInvalidInput, "{}: {}: {}", path.string(), quote_text(member), what);
  };
  int code = 0;
  const Archive archive(zip_open(path.c_str(), ZIP_RDONLY, &code), zip_discard);
  if (!archive) throw_error(ErrorKind::kInvalidInput, "{}: not a zip file", path.string());
  const zip_int64_t members = zip_get_num_entries(archive.get(), 0);
  if (members < 0 || members > kMaxMembers) {
    throw_error(ErrorKind::kInvalidInput, "{}: {} members; at most {} were expected", path.string(), members,
                kMaxMembers);
  }
  uint64_t left = bytes;
  std::vector<char> buffer(size_t{1} << 20);
  for (zip_uint64_t i = 0; i < static_cast<zip_uint64_t>(members); ++i) {
    const char* raw = zip_get_name(archive.get(), i, ZIP_FL_ENC_RAW);
    std::string_view name = raw == nullptr ? std::string_view() : raw;
    const bool is_folder = name.ends_with('/');
    if (is_folder) name.remove_suffix(1);
    if (!is_plain(name)) refuse(name, "is no name of a file below the model's folder");
    if (!is_ordinary(archive.get(), i)) refuse(name, "is neither a file nor a folder");
    const std::filesystem::path target = folder / name;
    if (is_folder) {
      std::filesystem::create_directories(target);
      continue;
    }
    std::filesystem::create_directories(target.parent_path());
    if (std::filesystem::exists(target)) refuse(name, "is there twice");
    const Member member(zip_fopen_index(archive.get(), i, 0), zip_fclose);
    if (!member) refuse(name, zip_strerror(archive.get()));
    NewFile file(target);
    while (true) {  // to the end: the CRC is compared there
      const zip_int64_t n = zip_fread(member.get(), buffer.data(), buffer.size());
      if (n < 0) refuse(name, zip_file_strerror(member.get()));
      if (n == 0) break;
      if (static_cast<uint64_t>(n) > left) refuse(name, fmt::format("unpacks to more than {} bytes", bytes));
      left -= static_cast<uint64_t>(n);
      file.write(buffer.data(), static_cast<size_t>(n));
    }
    file.sync();
  }
  if (left != 0) {
    throw_error(ErrorKind::kInvalidInput, "{}: unpacks to {} bytes, expected {}", path.string(), bytes - left,
                bytes);
  }
}

}  // namespace qiao
