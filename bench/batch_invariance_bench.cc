// What batch invariance costs the matmuls: the library's AVX2 kernels, whose sums have one order whatever the
// rows, beside the same kernels built free of it: up to two rows sum every second tile of 32 in a chain of
// additions of its own, as a kernel made for few rows would. (More rows have chains enough; their best kernel
// is the library's.) Of each shape and row count the faster variant counts.
//
//   bench/batch_invariance_bench            a table; its last line is the cost over all decoding shapes
#include "backend/cpu/linear_kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,bmi2")
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../tests/backend/cpu_weights.h"

namespace qiao::cpu {
const LinearKernels& linear_kernels_free_order();
}

#define QIAO_SUM_CHAINS 2
#define linear_kernels_avx2 linear_kernels_free_order
#include "../src/backend/cpu/linear_avx2.cc"
#undef linear_kernels_avx2

namespace qiao::cpu {
namespace {

struct WeightShape {
  const char* model;
  DType dtype;
  int64_t columns, outputs;
};
constexpr WeightShape kWeightShapes[] = {
    {"smollm2", DType::kQ4_1, 576, 960},      {"smollm2", DType::kQ4_1, 576, 3072},
    {"smollm2", DType::kQ4_1, 1536, 576},     {"smollm2", DType::kQ8_0, 576, 49152},
    {"gemma3-270m", DType::kQ5_0, 640, 4096}, {"gemma3-270m", DType::kQ6_K, 2048, 640},
    {"qwen-1.5b", DType::kQ4_K, 1536, 17920}, {"qwen-1.5b", DType::kQ6_K, 8960, 1536},
};

struct Times {
  double ordered = 1e9, free = 1e9;
  double cost() const { return ordered / std::min(ordered, free) - 1; }
};

// Seconds of a call, the best of passes over copies that together exceed the caches, in turn A B A B.
Times measure(const WeightShape& shape, int64_t rows, ThreadPool& pool, std::mt19937& random) {
  const int64_t bytes = shape.outputs * row_bytes(shape.dtype, shape.columns);
  const auto copies = static_cast<size_t>(std::max<int64_t>(1, (int64_t{100} << 20) / bytes));
  const std::vector<std::byte> file = random_rows(shape.dtype, shape.outputs, shape.columns, random);
  const WeightSource source{1, shape.columns, {{shape.dtype, shape.outputs, file.data()}}};
  Slabs slabs;
  std::vector<CpuWeight> weights;
  for (size_t i = 0; i < copies; ++i) {
    weights.emplace_back(source, slabs.take(static_cast<size_t>(CpuWeight::bytes_for(source))), pool);
  }
  std::vector<float> x = random_floats(rows * shape.columns, random);
  std::vector<float> y(static_cast<size_t>(rows * shape.outputs));
  Linear op;
  op.x = Tensor(x.data(), DType::kF32, {rows, shape.columns});
  op.compute = Compute::kQ8;
  op.y = Tensor(y.data(), DType::kF32, {rows, shape.outputs});
  const Workspace workspace(linear_workspace_bytes(op, pool.size()));
  op.workspace = workspace.tensor;
  const auto pass = [&](const LinearKernels& kernels) {
    const auto start = std::chrono::steady_clock::now();
    for (const CpuWeight& weight : weights) {
      op.weight = &weight;
      run_linear(op, kernels, pool);
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
           static_cast<double>(copies);
  };
  LinearKernels free = linear_kernels(Isa::kAvx2);  // all else is the library's
  free.dot_packed = linear_kernels_free_order().dot_packed;
  Times times;
  for (int round = 0; round < 20; ++round) {
    times.ordered = std::min(times.ordered, pass(linear_kernels(Isa::kAvx2)));
    times.free = std::min(times.free, pass(free));
  }
  return times;
}

}  // namespace
}  // namespace qiao::cpu

int main() {
  using namespace qiao::cpu;
  if (widest_isa() < Isa::kAvx2) {
    std::puts("this machine has no AVX2");
    return 0;
  }
  qiao::ThreadPool pool(0);
  std::mt19937 random(1);
  double ordered = 0, best = 0;
  std::puts(
      "| model | weight | rows | one order, us | free, us | cost |\n| --- | --- | --- | --- | --- | --- |");
  for (const WeightShape& shape : kWeightShapes) {
    for (const int64_t rows : {1, 2}) {
      const Times times = measure(shape, rows, pool, random);
      std::printf("| %s | %s %dx%d | %d | %.1f | %.1f | %.1f%% |\n", shape.model,
                  std::string(qiao::traits(shape.dtype).name).c_str(), static_cast<int>(shape.columns),
                  static_cast<int>(shape.outputs), static_cast<int>(rows), times.ordered * 1e6,
                  times.free * 1e6, times.cost() * 100);
      ordered += times.ordered;
      best += std::min(times.ordered, times.free);
    }
  }
  std::printf("| all | | | %.1f | %.1f | %.1f%% |\n", ordered * 1e6, best * 1e6, (ordered / best - 1) * 100);
}
#else
#include <cstdio>
int main() { std::puts("this machine has no AVX2"); }
#endif
