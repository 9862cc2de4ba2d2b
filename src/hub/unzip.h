// Unpacks a zip file that holds a model's directory; hostile, even where its digest was promised.
#pragma once

#include <cstdint>
#include <filesystem>

namespace qiao {

// Writes every file of the archive below `folder`, which must be there and empty, and syncs it. Throws
// Error(kInvalidInput) naming archive and member: a name that leaves the folder (absolute, "..", a
// backslash), a name twice, a link or device, more than 1000 members, files that do not make exactly `bytes`
// together, a broken stream. What was written until then stays.
void unzip(const std::filesystem::path& archive, const std::filesystem::path& folder, uint64_t bytes);

}  // namespace qiao
