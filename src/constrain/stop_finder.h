// Finds the first of several texts in a stream of bytes (Aho and Corasick 1975).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qiao::constrain {

// A state is the longest end of what was read that begins one of the texts. Immutable.
class StopFinder {
 public:
  static constexpr uint16_t kStart = 0, kFound = UINT16_MAX;
  static constexpr size_t kMaxBytes = 8192;  // of all texts together

  // Throws Error naming `where`: kInvalidInput for an empty text or one that is not UTF-8, kTooLarge over
  // kMaxBytes.
  StopFinder(const std::vector<std::string>& texts, std::string_view where);

  // kFound where the byte completes a text.
  uint16_t next(uint16_t state, uint8_t byte) const { return next_[state][byte]; }
  uint16_t depth(uint16_t state) const { return depths_[state]; }  // bytes
  // How many bytes of `text`, read from `state` on, complete the first one; 0: none is completed.
  size_t find(uint16_t state, std::string_view text) const;
  // Equal for finders of the same texts.
  const std::string& signature() const { return signature_; }

 private:
  std::vector<std::array<uint16_t, 256>> next_;
  std::vector<uint16_t> depths_;
  std::string signature_;
};

}  // namespace qiao::constrain
