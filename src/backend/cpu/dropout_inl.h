// Plan: 64 words at a time, sixteen blocks of Philox side by side in vectors, whose multiplications are the
// limit; then 64 elements pass through registers once.
#pragma once

#include "backend/cpu/dropout_kernels.h"

namespace qiao::cpu {

template <class V>
struct DropoutKernel {
  static constexpr int64_t kWords = 64;

  static void rows(const Dropout& op, int64_t begin, int64_t end) {
    const uint32_t threshold = op.threshold();
    const float scale = op.scale();
    const int64_t columns = op.y.shape[1];
    const auto shift = static_cast<int64_t>(op.first_column % 4);  // words of the first block before them
    uint32_t words[kWords];
    for (int64_t t = begin; t < end; ++t) {
      const float* x = static_cast<const float*>(op.x.data) + t * op.x.stride[0];
      float* y = static_cast<float*>(op.y.data) + t * op.y.stride[0];
      for (int64_t k = -shift; k < columns; k += kWords) {
        V::philox(static_cast<uint32_t>((op.first_column + k) / 4), op.first_row + static_cast<uint32_t>(t),
                  op.stream, op.seed, words);
        const int64_t first = k < 0 ? shift : 0, count = columns - k < kWords ? columns - k : kWords;
        if (op.add) {
          for (int64_t i = first; i < count; ++i) y[k + i] += words[i] < threshold ? 0.0f : x[k + i] * scale;
        } else {
          for (int64_t i = first; i < count; ++i) y[k + i] = words[i] < threshold ? 0.0f : x[k + i] * scale;
        }
      }
    }
  }
};

}  // namespace qiao::cpu
