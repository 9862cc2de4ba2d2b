// Digests by which what was fetched is held to what was promised.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace qiao {

class Digest {
 public:
  enum class Kind { kSha256, kSha1 };
  explicit Digest(Kind kind);
  ~Digest();
  Digest(Digest&&) noexcept;

  void update(std::string_view bytes);
  std::string hex();  // lower case; nothing may be added after it

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// SHA-256 of the whole file; `tick` hears how many bytes are read so far. Throws Error(kIo).
std::string sha256_of_file(const std::filesystem::path& path, const std::function<void(uint64_t)>& tick = {});
// What git calls this content: SHA-1 of "blob SIZE\0" and the bytes.
std::string git_blob_id_of_file(const std::filesystem::path& path);

}  // namespace qiao
