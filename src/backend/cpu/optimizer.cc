// What the optimizer does with a run of parameters: optimizer_inl.h has the plan; here, elements are shared
// out over the threads.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/optimizer_inl.h"
#include "backend/cpu/simd_generic.h"
#include "base/error.h"

namespace qiao::cpu {

const OptimizerKernels kOptimizerGeneric = {OptimizerKernel<generic::Simd>::squares,
                                            OptimizerKernel<generic::Simd>::adamw,
                                            OptimizerKernel<generic::Simd>::adamw_kept};

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

// Finds codes by the upper 16 bits of a number.
class CodeFinder {
 public:
  CodeFinder(const DynamicCodes& codes, bool is_signed) {
    std::ranges::copy(codes.boundary, boundary_.begin());
    boundary_.back() = std::numeric_limits<float>::infinity();
    for (uint32_t bucket = 0; bucket < kBuckets; ++bucket) {
      const float low = bucket == 0 ? 0.0f : edge(bucket), high = edge(bucket + 1);
      first_[bucket] = codes.code_of(low);
      first_[kBuckets + bucket] = codes.code_of(-high);
      QIAO_ASSERT(codes.code_of(high) - codes.code_of(low) <= 1 &&
                  codes.code_of(-low) - codes.code_of(-high) <= 1);
    }
    tables_ = {codes.value.data(), boundary_.data(), first_.data(), kLeast, kMost, kBuckets, is_signed};
  }
  CodeFinder(const CodeFinder&) = delete;
  CodeFinder& operator=(const CodeFinder&) = delete;
  const CodeTables& tables() const { return tables_; }

 private:
  static constexpr int32_t kLeast = 0x3300, kMost = 0x3f80;  // 2^-25, below every boundary but 0's; 1
  static constexpr int32_t kBuckets = kMost - kLeast + 1;
  static float edge(uint32_t bucket) { return std::bit_cast<float>((kLeast + bucket) << 16); }
  std::array<uint8_t, 2 * size_t{kBuckets}> first_{};
  std::array<float, 256> boundary_;
  CodeTables tables_;
};

KeptMoment block_of(const Tensor& values, const Tensor& scales, const CodeTables& tables, int64_t first) {
  if (values.dtype == DType::kBF16) return {values.as<uint16_t>() + first, nullptr, nullptr};
  return {values.as<uint8_t>() + first, scales.as<float>() + first / kCodeBlock, &tables};
}

}  // namespace

void CpuBackend::do_adamw(const AdamW& op) {
  static const CodeFinder first_codes(signed_codes(), true), second_codes(unsigned_codes(), false);
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
  pool_.parallel_for(
      (count + kCodeBlock - 1) / kCodeBlock, row_grain(kCodeBlock), [&](int64_t begin, int64_t end, int) {
        for (int64_t at = begin * kCodeBlock; at < std::min(end * kCodeBlock, count); at += kCodeBlock) {
          kernels.adamw_kept(constants, gradients + at, parameters + at,
                             block_of(op.first_moment, op.first_scales, first_codes.tables(), at),
                             block_of(op.second_moment, op.second_scales, second_codes.tables(), at),
                             std::min(kCodeBlock, count - at));
        }
      });
}

}  // namespace qiao::cpu
