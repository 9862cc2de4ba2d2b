// Makes the bytes of safetensors files: a length, the JSON as given, and data.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

namespace qiao::testing {

inline std::string safetensors_file(std::string_view json, size_t data_bytes,
                                    std::optional<uint64_t> stated_length = {}) {
  const uint64_t length = stated_length.value_or(json.size());
  char raw[8];
  std::memcpy(raw, &length, sizeof length);
  std::string file(raw, sizeof raw);
  file += json;
  for (size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i * 5);
  return file;
}

// {"w": {"dtype":…,"shape":…,"data_offsets":…}}
inline std::string one_tensor(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return std::string("{\"w\":{\"dtype\":\"") + std::string(dtype) + "\",\"shape\":" + std::string(shape) +
         ",\"data_offsets\":" + std::string(offsets) + "}}";
}

}  // namespace qiao::testing
