// The files of tests/golden/formats and what the packages that made them say is inside.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "base/file.h"
#include "base/json.h"

namespace qiao::testing {

inline std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(QIAO_TEST_DATA) / "golden" / "formats" / name;
}

inline Json golden_expected(const std::string& name) {
  const std::filesystem::path path = golden("expected.json");
  return parse_json(read_file(path), path.string()).at(name);
}

inline std::string fnv1a(std::span<const std::byte> bytes) {
  uint64_t value = 0xcbf29ce484222325u;
  for (const std::byte byte : bytes) value = (value ^ static_cast<uint64_t>(byte)) * 0x100000001b3u;
  return fmt::format("{:016x}", value);
}

}  // namespace qiao::testing
