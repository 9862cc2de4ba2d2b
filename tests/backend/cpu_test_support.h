// What tests of the CPU chip share: memory with guards of NaN, random values, plain float64 pictures of ops.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"

namespace qiao::cpu_test {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr double kUnit = 0x1p-24;

inline std::unique_ptr<Backend> cpu_with(int threads) { return make_cpu_backend({.threads = threads}); }

inline std::vector<float> normal_values(int64_t count, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

inline Tensor view(std::vector<float>& values, std::initializer_list<int64_t> shape) {
  return Tensor(values.data(), DType::kF32, shape);
}
inline Tensor view(std::vector<int32_t>& values, std::initializer_list<int64_t> shape) {
  return Tensor(values.data(), DType::kI32, shape);
}

// Scratch memory of an op, filled with NaN.
class Workspace {
 public:
  template <typename Op>
  Workspace(Backend& backend, Op* op) {
    const size_t bytes = backend.workspace_bytes(*op);
    if (bytes == 0) return;
    buffer_ = backend.allocate(bytes);
    std::memset(buffer_.data(), 0xff, bytes);
    op->workspace = Tensor(buffer_.data(), DType::kU8, {static_cast<int64_t>(bytes)});
  }

 private:
  Buffer buffer_;
};

inline bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace qiao::cpu_test
