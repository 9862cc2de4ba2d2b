// What the optimizer does with all parameters at once: optimizer_inl.h has the plan; here, elements are
// shared out over the threads.
#include <algorithm>
#include <array>
#include <cmath>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/optimizer_inl.h"
#include "backend/cpu/simd_generic.h"

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

void CpuBackend::do_adamw(const AdamW& op) {
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
  pool_.parallel_for(op.parameters.shape[0], row_grain(1), [&](int64_t begin, int64_t end, int) {
    kernels.adamw(constants, op.gradients.as<float>() + begin, op.parameters.as<float>() + begin,
                  op.first_moment.as<float>() + begin, op.second_moment.as<float>() + begin, end - begin);
  });
}

}  // namespace qiao::cpu
