// Sixteen Philox blocks at once in plain loops, which compilers vectorise: 64 words in the order of their
// tokens. Set is the instruction set's struct: it keeps each set's code its own.
#pragma once

#include <cstdint>

namespace qiao::cpu {

template <class Set>
struct PhiloxWords {
  // words[4 i + w] = word w of counter (first + i, position, choice, 0).
  static void fill(uint32_t first, uint32_t position, uint32_t choice, uint64_t seed, uint32_t* words) {
    uint32_t c[4][16];
    for (uint32_t i = 0; i < 16; ++i) {
      c[0][i] = first + i;
      c[1][i] = position;
      c[2][i] = choice;
      c[3][i] = 0;
    }
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < 16; ++i) {
        const uint64_t a = uint64_t{0xD2511F53u} * c[0][i], b = uint64_t{0xCD9E8D57u} * c[2][i];
        c[0][i] = static_cast<uint32_t>(b >> 32) ^ c[1][i] ^ key0;
        c[1][i] = static_cast<uint32_t>(b);
        c[2][i] = static_cast<uint32_t>(a >> 32) ^ c[3][i] ^ key1;
        c[3][i] = static_cast<uint32_t>(a);
      }
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    for (int i = 0; i < 16; ++i) {
      for (int w = 0; w < 4; ++w) words[4 * i + w] = c[w][i];
    }
  }
};

}  // namespace qiao::cpu
