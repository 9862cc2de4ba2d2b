#include "base/ordered_map.h"

#include <random>

namespace qiao {

uint64_t keyed_hash(std::string_view text) {
  static const uint64_t seed = [] {
    std::random_device random;
    return (uint64_t{random()} << 32) ^ random();
  }();
  // Multiplies to 128 bits and folds: every bit of either factor reaches every bit of the result.
  const auto mix = [](uint64_t a, uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  };
  uint64_t hash = seed ^ text.size();
  while (text.size() >= 8) {
    uint64_t word;
    std::memcpy(&word, text.data(), sizeof word);
    hash = mix(hash ^ word, seed ^ 0x9e3779b97f4a7c15u);
    text.remove_prefix(8);
  }
  uint64_t rest = 0;
  std::memcpy(&rest, text.data(), text.size());
  return mix(hash ^ rest ^ 0xd6e8feb86659fd93u, seed ^ 0xa0761d6478bd642fu);
}

}  // namespace qiao
