// What the optimizer does with a run of parameters: optimizer_inl.h has the plan; here, elements are shared
// out over the threads. Moments of BF16 and of codes are spread out to F32 a block at a time, in the L1
// cache.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/optimizer_inl.h"
#include "backend/cpu/simd_generic.h"
#include "tensor/half.h"

namespace qiao::cpu {

const OptimizerKernels kOptimizerGeneric = {OptimizerKernel<generic::Simd>::squares,
                                            OptimizerKernel<generic::Simd>::adamw};

void CpuBackend::do_sum_of_squares(const SumOfSquares& op) {
  constexpr int64_t kRun = 4096;   // the contract's
  constexpr int64_t kRuns = 1024;  // sums kept before they are folded
  const OptimizerKernels& kernels = choose(kOptimizerGeneric, kOptimizerAvx2, kOptimizerAvx512);
  const int64_t count = op.x.shape[0], runs = (count + kRun - 1) / kRun;
  std::array<double, static_cast<size_t>(kRuns)> sums;
  double all = 0;
  for (int64_t first = 0; first < runs; first += kRuns) {
    const int64_t here = std::min(kRuns, runs - first);
    pool_.parallel_for(here, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t run = begin; run < end; ++run) {
        const int64_t at = (first + run) * kRun;
        sums[static_cast<size_t>(run)] = kernels.squares(op.x.as<float>() + at, std::min(kRun, count - at));
      }
    });
    for (int64_t run = 0; run < here; ++run) all += sums[static_cast<size_t>(run)];
  }
  op.sum.as<double>()[0] += all;
}

void CpuBackend::do_accumulate(const Accumulate& op) {
  const float* x = op.x.as<float>();
  float* sum = op.sum.as<float>();
  pool_.parallel_for(op.x.shape[0], row_grain(1), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) sum[i] += x[i];
  });
}

namespace {

// DynamicCodes::code_of by the upper 16 bits of a number: where to begin, and then boundary by boundary.
class CodeFinder {
 public:
  explicit CodeFinder(const DynamicCodes& codes) : codes_(codes) {
    for (uint32_t bucket = 0; bucket < kBuckets; ++bucket) {
      // The least number of the bucket: its lower edge, or with a sign its upper one.
      first_[bucket] = codes.code_of(bucket == 0 ? 0.0f : edge(bucket));
      first_[kBuckets + bucket] = codes.code_of(-edge(bucket + 1));
    }
  }
  const DynamicCodes& codes() const { return codes_; }
  uint8_t find(float x) const {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t magnitude = std::clamp((bits & 0x7fffffffu) >> 16, kLeast, kLeast + kBuckets - 1) - kLeast;
    uint32_t code = first_[magnitude + (bits >> 31) * kBuckets];
    while (code < codes_.boundary.size() && codes_.boundary[code] < x) ++code;
    return static_cast<uint8_t>(code);
  }

 private:
  static constexpr uint32_t kLeast = 0x3300, kMost = 0x3f80;  // 2^-25, below every boundary but 0's; 1
  static constexpr uint32_t kBuckets = kMost - kLeast + 1;
  static float edge(uint32_t bucket) { return std::bit_cast<float>((kLeast + bucket) << 16); }
  const DynamicCodes& codes_;
  std::array<uint8_t, 2 * size_t{kBuckets}> first_;
};

struct Moment {
  const Tensor& values;
  const Tensor& scales;
  const CodeFinder& finder;

  void read(int64_t first, int64_t count, float* to) const {
    if (values.dtype == DType::kBF16) {
      const uint16_t* from = values.as<uint16_t>() + first;
      for (int64_t i = 0; i < count; ++i) to[i] = bf16_to_float(from[i]);
    } else {
      const uint8_t* from = values.as<uint8_t>() + first;
      const float scale = scales.as<float>()[first / kCodeBlock];
      for (int64_t i = 0; i < count; ++i) to[i] = finder.codes().value[from[i]] * scale;
    }
  }
  void write(int64_t first, int64_t count, const float* from) const {
    if (values.dtype == DType::kBF16) {
      uint16_t* to = values.as<uint16_t>() + first;
      for (int64_t i = 0; i < count; ++i) to[i] = float_to_bf16(from[i]);
      return;
    }
    float scale = 0;
    for (int64_t i = 0; i < count; ++i) scale = std::max(scale, std::abs(from[i]));
    scales.as<float>()[first / kCodeBlock] = scale;
    uint8_t* to = values.as<uint8_t>() + first;
    const bool has_signs = finder.codes().value[0] < 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t code = finder.find(scale > 0 ? from[i] / scale : 0.0f);
      to[i] = !has_signs && code == 0 && from[i] > 0 ? 1 : code;
    }
  }
};

}  // namespace

void CpuBackend::do_adamw(const AdamW& op) {
  static const CodeFinder first_finder(signed_codes()), second_finder(unsigned_codes());
  const OptimizerKernels& kernels = choose(kOptimizerGeneric, kOptimizerAvx2, kOptimizerAvx512);
  const auto step = static_cast<double>(op.step);
  const auto rounded = [](double value) { return static_cast<float>(value); };
  AdamWConstants constants;
  constants.gradient_scale = rounded(op.gradient_scale);
  constants.beta1 = rounded(op.beta1);
  constants.beta1_rest = rounded(1 - op.beta1);
  constants.beta2 = rounded(op.beta2);
  constants.beta2_rest = rounded(1 - op.beta2);
  constants.decay = rounded(1 - op.learning_rate * op.weight_decay);
  constants.step_size = rounded(op.learning_rate / (1 - std::pow(op.beta1, step)));
  constants.root = rounded(1 / std::sqrt(1 - std::pow(op.beta2, step)));
  constants.epsilon = rounded(op.epsilon);
  const int64_t count = op.parameters.shape[0];
  const float* gradients = op.gradients.as<float>();
  float* parameters = op.parameters.as<float>();
  if (op.first_moment.dtype == DType::kF32) {
    pool_.parallel_for(count, row_grain(1), [&](int64_t begin, int64_t end, int) {
      kernels.adamw(constants, gradients + begin, parameters + begin, op.first_moment.as<float>() + begin,
                    op.second_moment.as<float>() + begin, end - begin);
    });
    return;
  }
  const Moment first{op.first_moment, op.first_scales, first_finder};
  const Moment second{op.second_moment, op.second_scales, second_finder};
  pool_.parallel_for(
      (count + kCodeBlock - 1) / kCodeBlock, row_grain(kCodeBlock), [&](int64_t begin, int64_t end, int) {
        std::array<float, static_cast<size_t>(kCodeBlock)> m, v;
        for (int64_t at = begin * kCodeBlock; at < std::min(end * kCodeBlock, count); at += kCodeBlock) {
          const int64_t here = std::min(kCodeBlock, count - at);
          first.read(at, here, m.data());
          second.read(at, here, v.data());
          kernels.adamw(constants, gradients + at, parameters + at, m.data(), v.data(), here);
          first.write(at, here, m.data());
          second.write(at, here, v.data());
        }
      });
}

}  // namespace qiao::cpu
