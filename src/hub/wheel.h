// Reads one member out of a wheel: a zip file of the Python index, hostile until its bytes are verified.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace qiao {

// Unpacks `member`, which must be exactly `bytes` long, into `sink`, piece by piece; the archive's own CRC is
// checked. Nothing else of the archive is read, and no name in it is used as a path. Throws
// Error(kInvalidInput) naming the wheel and the member: not a zip, no such member, another size, a broken
// stream.
void read_wheel_member(const std::filesystem::path& wheel, const std::string& member, uint64_t bytes,
                       const std::function<void(std::string_view)>& sink);

}  // namespace qiao
