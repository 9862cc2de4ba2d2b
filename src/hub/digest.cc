#include "hub/digest.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.h"

namespace qiao {

struct Digest::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Digest::Digest(Kind kind) : state_(std::make_unique<State>()) {
  const EVP_MD* algorithm = kind == Kind::kSha256 ? EVP_sha256() : EVP_sha1();
  if (EVP_DigestInit_ex(state_->context, algorithm, nullptr) != 1) {
    throw_error(ErrorKind::kUnavailable, "OpenSSL refuses {}", kind == Kind::kSha256 ? "SHA-256" : "SHA-1");
  }
}
Digest::~Digest() = default;
Digest::Digest(Digest&&) noexcept = default;

void Digest::update(std::string_view bytes) {
  QIAO_ASSERT(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()) == 1);
}

std::string Digest::hex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  QIAO_ASSERT(EVP_DigestFinal_ex(state_->context, digest, &size) == 1);
  std::string text;
  for (unsigned int i = 0; i < size; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

namespace {

void read_all(const std::filesystem::path& path, Digest& digest, const std::function<void(uint64_t)>& tick) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rbe"), std::fclose);
  if (!file) throw_error(ErrorKind::kIo, "{}: cannot open: {}", path.string(), std::strerror(errno));
  std::vector<char> buffer(size_t{1} << 16);
  uint64_t done = 0;
  while (const size_t n = std::fread(buffer.data(), 1, buffer.size(), file.get())) {
    digest.update({buffer.data(), n});
    done += n;
    if (tick) tick(done);
  }
  if (std::ferror(file.get()) != 0) throw_error(ErrorKind::kIo, "{}: cannot read", path.string());
}

}  // namespace

std::string sha256_of_file(const std::filesystem::path& path, const std::function<void(uint64_t)>& tick) {
  Digest digest(Digest::Kind::kSha256);
  read_all(path, digest, tick);
  return digest.hex();
}

std::string git_blob_id_of_file(const std::filesystem::path& path) {
  Digest digest(Digest::Kind::kSha1);
  const std::string header = fmt::format("blob {}", std::filesystem::file_size(path));
  digest.update(std::string_view(header.c_str(), header.size() + 1));  // the NUL belongs to it
  read_all(path, digest, {});
  return digest.hex();
}

}  // namespace qiao
