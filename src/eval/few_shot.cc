#include "eval/few_shot.h"

#include <bit>
#include <numeric>
#include <unordered_set>

#include "base/error.h"

namespace qiao::eval {
namespace {

constexpr size_t kWords = 624, kMiddle = 397;

}  // namespace

// init_by_array of Matsumoto and Nishimura's mt19937ar with the seed's 32-bit words as key.
PythonRandom::PythonRandom(uint64_t seed) {
  std::vector<uint32_t> key = {static_cast<uint32_t>(seed)};
  if (seed >> 32 != 0) key.push_back(static_cast<uint32_t>(seed >> 32));
  state_[0] = 19650218u;
  const auto mixed = [this](size_t i) { return state_[i - 1] ^ (state_[i - 1] >> 30); };
  for (uint32_t i = 1; i < kWords; ++i) state_[i] = 1812433253u * mixed(i) + i;
  size_t i = 1, j = 0;
  const auto advance = [&] {
    if (++i < kWords) return;
    state_[0] = state_[kWords - 1];
    i = 1;
  };
  for (size_t k = 0; k < kWords; ++k) {
    state_[i] = (state_[i] ^ (mixed(i) * 1664525u)) + key[j] + static_cast<uint32_t>(j);
    advance();
    j = (j + 1) % key.size();
  }
  for (size_t k = 0; k < kWords - 1; ++k) {
    state_[i] = (state_[i] ^ (mixed(i) * 1566083941u)) - static_cast<uint32_t>(i);
    advance();
  }
  state_[0] = 0x80000000u;
}

uint32_t PythonRandom::next() {
  if (index_ == kWords) {
    for (size_t i = 0; i < kWords; ++i) {
      const uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % kWords] & 0x7fffffffu);
      state_[i] = state_[(i + kMiddle) % kWords] ^ (y >> 1) ^ ((y & 1u) != 0 ? 0x9908b0dfu : 0u);
    }
    index_ = 0;
  }
  uint32_t y = state_[index_++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

uint64_t PythonRandom::below(uint64_t bound) {
  const int bits = std::bit_width(bound);
  QIAO_ASSERT(bits >= 1 && bits <= 32);
  uint32_t drawn = next() >> (32 - bits);
  while (drawn >= bound) drawn = next() >> (32 - bits);
  return drawn;
}

std::vector<size_t> PythonRandom::sample(size_t population, size_t count) {
  QIAO_ASSERT(count <= population);
  std::vector<size_t> drawn;
  size_t small = 21;  // Python: where a list takes less memory than a set of `count`
  if (count > 5) {
    size_t power = 1;
    while (power < 3 * count) power *= 4;
    small += power;
  }
  if (population <= small) {
    std::vector<size_t> pool(population);
    std::iota(pool.begin(), pool.end(), size_t{0});
    for (size_t i = 0; i < count; ++i) {
      const uint64_t j = below(population - i);
      drawn.push_back(pool[j]);
      pool[j] = pool[population - i - 1];
    }
    return drawn;
  }
  std::unordered_set<size_t> seen;
  for (size_t i = 0; i < count; ++i) {
    size_t j = below(population);
    while (!seen.insert(j).second) j = below(population);
    drawn.push_back(j);
  }
  return drawn;
}

FewShotSampler::FewShotSampler(std::span<const Row> pool, int64_t shots, uint64_t seed, bool shared)
    : pool_(pool), shots_(static_cast<size_t>(shots)), shared_(shared), random_(seed) {
  const size_t need = shots_ == 0 ? 0 : shots_ + (shared ? 1 : 0);
  if (pool.size() >= need) return;
  throw_error(ErrorKind::kInvalidInput, "--num-fewshot {}: {} good rows are needed, and {} has {}", shots,
              need, pool.empty() ? "the file" : pool.front().file, pool.size());
}

std::vector<size_t> FewShotSampler::sample(const Row& question) {
  if (shots_ == 0) return {};
  if (!shared_) return random_.sample(pool_.size(), shots_);
  std::vector<size_t> drawn = random_.sample(pool_.size(), shots_ + 1);
  std::erase_if(drawn, [&](size_t i) { return pool_[i].json == question.json; });
  drawn.resize(std::min(drawn.size(), shots_));
  if (drawn.size() == shots_) return drawn;
  std::vector<size_t> others;  // the file holds the question more than once
  for (size_t i = 0; i < pool_.size(); ++i) {
    if (pool_[i].json != question.json) others.push_back(i);
  }
  if (others.size() < shots_) {
    throw_error(ErrorKind::kInvalidInput, "{}: {} other rows are needed for examples, and there are {}",
                question.where(), shots_, others.size());
  }
  drawn = random_.sample(others.size(), shots_);
  for (size_t& i : drawn) i = others[i];
  return drawn;
}

}  // namespace qiao::eval
