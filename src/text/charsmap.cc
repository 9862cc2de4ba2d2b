#include "text/charsmap.h"

#include "base/error.h"

namespace qiao::tokenization {
namespace {

uint32_t little_endian(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 4; i-- > 0;) value = (value << 8) | static_cast<unsigned char>(bytes[i]);
  return value;
}

}  // namespace

Charsmap::Charsmap(std::string_view blob, std::string_view where) : where_(where) {
  if (blob.size() < 4) {
    throw_error(ErrorKind::kInvalidInput, "{}: precompiled_charsmap of {} bytes has no header", where,
                blob.size());
  }
  const size_t trie = little_endian(blob);
  if (trie == 0 || trie % 4 != 0 || trie > blob.size() - 4) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: precompiled_charsmap of {} bytes cannot hold a trie of {} bytes", where, blob.size(),
                trie);
  }
  units_.reserve(trie / 4);
  for (size_t i = 0; i < trie; i += 4) units_.push_back(little_endian(blob.substr(4 + i, 4)));
  replacements_ = blob.substr(4 + trie);
  if (!replacements_.empty() && replacements_.back() != '\0') {
    throw_error(ErrorKind::kInvalidInput, "{}: precompiled_charsmap's last replacement has no end", where);
  }
}

uint32_t Charsmap::unit(size_t index) const {
  if (index >= units_.size()) {
    throw_error(ErrorKind::kInvalidInput, "{}: precompiled_charsmap points to unit {} of {}", where_, index,
                units_.size());
  }
  return units_[index];
}

Charsmap::Found Charsmap::search(std::string_view text, bool first) const {
  const auto offset = [](uint32_t u) { return (u >> 10) << ((u & (1u << 9)) >> 6); };
  Found found;
  uint32_t at = offset(unit(0));
  for (size_t i = 0; i < text.size() && text[i] != '\0'; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    at ^= byte;
    const uint32_t u = unit(at);
    if ((u & 0x800000FFu) != byte) break;
    at ^= offset(u);
    if ((u & 0x100u) == 0) continue;
    const uint32_t value = unit(at) & 0x7FFFFFFFu;
    if (value >= replacements_.size()) {
      throw_error(ErrorKind::kInvalidInput, "{}: precompiled_charsmap points to replacement {} of {} bytes",
                  where_, value, replacements_.size());
    }
    found = {i + 1, std::string_view(replacements_.c_str() + value)};
    if (first) break;
  }
  return found;
}

}  // namespace qiao::tokenization
