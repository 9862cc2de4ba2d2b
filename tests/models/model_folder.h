// Models of tests/golden, and copies of them to spoil.
#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "formats/model_files.h"

namespace qiao::testing {

namespace fs = std::filesystem;

inline fs::path golden_models() { return fs::path(QIAO_TEST_DATA) / "golden" / "models"; }

// A folder that goes away with this object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "qiao-models-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw Error(ErrorKind::kIo, "no temporary folder");
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;  // a leftover in /tmp fails no test
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

inline void write_text(const fs::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
}

// The Hugging Face directory of a golden model with one of its configurations.
class ModelFolder {
 public:
  explicit ModelFolder(const std::string& name, const std::string& config = "config.json") {
    json = parse_json(read_file(golden_models() / name / config), config);
    fs::create_symlink(golden_models() / name / "model.safetensors", folder_.path() / "model.safetensors");
  }
  // Writes `json` and opens the directory.
  std::shared_ptr<ModelFiles> open() const {
    write_text(folder_.path() / "config.json", dump_json(json));
    return ModelFiles::open(folder_.path());
  }
  const fs::path& path() const { return folder_.path(); }
  Json json;  // of config.json, to change before open()

 private:
  TemporaryFolder folder_;
};

}  // namespace qiao::testing
