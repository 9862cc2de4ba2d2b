// Which rows stand before a question as examples: drawn as lm-evaluation-harness draws them, so that the same
// seed gives the same prompts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "eval/rows.h"

namespace qiao::eval {

// random.Random(seed) of Python: the Mersenne Twister as it seeds it, and what sample() draws from it.
class PythonRandom {
 public:
  explicit PythonRandom(uint64_t seed);
  // random.sample(range(population), count). Required: count <= population.
  std::vector<size_t> sample(size_t population, size_t count);

 private:
  uint32_t next();
  uint64_t below(uint64_t bound);
  uint32_t state_[624];
  size_t index_ = 624;
};

// lm-evaluation-harness' default sampler over a pool of rows; one draw for each question, in order.
class FewShotSampler {
 public:
  // `pool` outlives this. `shared`: the pool is the file of the questions, and a question is never its own
  // example. Throws Error(kInvalidInput) where the pool is too small for `shots`.
  FewShotSampler(std::span<const Row> pool, int64_t shots, uint64_t seed, bool shared);
  // Indexes of the pool's rows that stand before `question`.
  std::vector<size_t> sample(const Row& question);

 private:
  std::span<const Row> pool_;
  size_t shots_;
  bool shared_;
  PythonRandom random_;
};

}  // namespace qiao::eval
