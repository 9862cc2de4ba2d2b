// What a kernel that was given early reads before it waits (programmatic dependent launch). On a device the
// kernels before it may then still run, back to one that was not given early and began when all was done;
// what one of them writes is there or is not.
#include <cstring>

#include "backend/cuda_stand_in/engine.h"
#include "base/error.h"

namespace qiao::stand_in {

void EarlyReads::add(const void* from, size_t bytes, const Where& where) {
  const auto* begin = static_cast<const std::byte*>(from);
  if (!reads_.empty() && reads_.back().from + reads_.back().bytes == begin) {
    reads_.back().bytes += bytes;
  } else {
    reads_.push_back({begin, bytes, where});
  }
  contents_.insert(contents_.end(), begin, begin + bytes);
}

std::string EarlyReads::changed() const {
  const std::byte* was = contents_.data();
  for (const Read& read : reads_) {
    if (std::memcmp(was, read.from, read.bytes) != 0) {
      const std::string_view file = read.where.file_name();
      return fmt::format(
          "{}:{}: a kernel given early reads before it waits what one before it writes (hold_next)",
          file.substr(file.rfind('/') + 1), read.where.line());
    }
    was += read.bytes;
  }
  return {};
}

}  // namespace qiao::stand_in
