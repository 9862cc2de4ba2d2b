// Matmuls of the shapes of three small models: bench/linear_bench --benchmark_filter=Q4_K/.*/T:512
// Counters: GOP/s and GB/s of weights, and their shares of what this machine's own loops reach (qiao
// devices).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../tests/backend/cpu_weights.h"
#include "backend/cpu/peaks.h"

namespace qiao::cpu {
namespace {

ThreadPool& pool() {
  static ThreadPool pool(std::getenv("QIAO_THREADS") ? std::atoi(std::getenv("QIAO_THREADS")) : 0);
  return pool;
}

const DevicePeaks& peaks() {
  static const DevicePeaks peaks = measure_peaks(active_isa(), pool());
  return peaks;
}

void run(benchmark::State& state, DType dtype, Compute compute, int64_t columns, int64_t outputs,
         int64_t rows) {
  std::mt19937 random(1);
  // Enough copies that a small matrix does not stay in the cache, as in a model.
  const int64_t bytes = outputs * row_bytes(dtype, columns);
  const int64_t copies = std::max<int64_t>(1, (int64_t{200} << 20) / bytes);
  const std::vector<std::byte> file = random_rows(dtype, outputs, columns, random);
  std::vector<CpuWeight> weights;
  const WeightSource source{1, columns, {{dtype, outputs, file.data()}}};
  Slabs slabs;
  for (int64_t i = 0; i < copies; ++i) {
    weights.emplace_back(source, slabs.take(static_cast<size_t>(CpuWeight::bytes_for(source))), pool());
  }
  std::vector<float> x = random_floats(rows * columns, random), y(static_cast<size_t>(rows * outputs));
  Linear op;
  op.x = Tensor(x.data(), DType::kF32, {rows, columns});
  op.compute = compute;
  op.y = Tensor(y.data(), DType::kF32, {rows, outputs});
  const Workspace workspace(linear_workspace_bytes(op, pool().size()));
  op.workspace = workspace.tensor;
  const LinearKernels& kernels = linear_kernels(active_isa());
  size_t next = 0;
  // The best call stands for the kernel: other programs only ever slow a call down.
  double best = 1e9;
  for (auto _ : state) {
    op.weight = &weights[next++ % weights.size()];
    const auto start = std::chrono::steady_clock::now();
    run_linear(op, kernels, pool());
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
  const double operations = 2.0 * static_cast<double>(rows * columns * outputs) / best;
  const double read = static_cast<double>(bytes) / best;
  const double peak = compute == Compute::kQ8     ? peaks().int8_ops
                      : compute == Compute::kBF16 ? peaks().bf16_flops
                                                  : peaks().f32_flops;
  state.counters["best_us"] = best * 1e6;
  state.counters["GOP/s"] = operations * 1e-9;
  state.counters["%peak"] = operations * 100 / peak;
  state.counters["GB/s"] = read * 1e-9;
  state.counters["%read"] = read * 100 / peaks().read_bytes_per_second;
}

struct Shape {
  const char* model;
  DType dtype;
  Compute compute;
  int64_t columns, outputs;
};
constexpr Shape kShapes[] = {
    {"smollm2", DType::kQ4_1, Compute::kQ8, 576, 960},
    {"smollm2", DType::kQ4_1, Compute::kQ8, 576, 3072},
    {"smollm2", DType::kQ4_1, Compute::kQ8, 1536, 576},
    {"smollm2", DType::kQ8_0, Compute::kQ8, 576, 49152},
    {"gemma3-270m", DType::kQ5_0, Compute::kQ8, 640, 4096},
    {"gemma3-270m", DType::kQ6_K, Compute::kQ8, 2048, 640},
    {"gemma3-270m", DType::kQ8_0, Compute::kQ8, 640, 65536},
    {"qwen-1.5b", DType::kQ4_K, Compute::kQ8, 1536, 17920},
    {"qwen-1.5b", DType::kQ6_K, Compute::kQ8, 8960, 1536},
    {"qwen-1.5b", DType::kQ6_K, Compute::kQ8, 1536, 151936},
    {"square", DType::kQ4_0, Compute::kQ8, 2048, 2048},
    {"square", DType::kQ5_1, Compute::kQ8, 2048, 2048},
    {"square", DType::kQ2_K, Compute::kQ8, 2048, 2048},
    {"square", DType::kQ3_K, Compute::kQ8, 2048, 2048},
    {"square", DType::kQ5_K, Compute::kQ8, 2048, 2048},
    {"square", DType::kIQ4_NL, Compute::kQ8, 2048, 2048},
    {"square", DType::kIQ4_XS, Compute::kQ8, 2048, 2048},
    {"square", DType::kMXFP4, Compute::kQ8, 2048, 2048},
    {"square", DType::kQ4_K, Compute::kF32, 2048, 2048},
    {"square", DType::kF32, Compute::kF32, 2048, 2048},
    {"square", DType::kF16, Compute::kF32, 2048, 2048},
    {"square", DType::kBF16, Compute::kF32, 2048, 2048},
    {"square", DType::kBF16, Compute::kBF16, 2048, 2048},
};

void register_all() {
  for (const Shape& s : kShapes) {
    for (const int64_t rows : {1, 4, 16, 64, 512}) {
      const std::string compute = s.compute == Compute::kQ8     ? "q8"
                                  : s.compute == Compute::kBF16 ? "bf16"
                                                                : "f32";
      const std::string title = std::string(traits(s.dtype).name) + "/" + compute + "/" + s.model + "/" +
                                std::to_string(s.columns) + "x" + std::to_string(s.outputs) +
                                "/T:" + std::to_string(rows);
      benchmark::RegisterBenchmark(
          title.c_str(),
          [&s, rows](benchmark::State& state) { run(state, s.dtype, s.compute, s.columns, s.outputs, rows); })
          ->UseManualTime()
          ->Unit(benchmark::kMicrosecond)
          ->MinTime(0.1);
    }
  }
}

}  // namespace
}  // namespace qiao::cpu

int main(int argc, char** argv) {
  qiao::cpu::register_all();
  benchmark::Initialize(&argc, argv);
  const qiao::DevicePeaks& p = qiao::cpu::peaks();
  std::fprintf(stderr, "peaks: %.0f int8 GOP/s, %.0f bf16 and %.0f f32 GFLOP/s, %.1f GB/s read\n",
               p.int8_ops * 1e-9, p.bf16_flops * 1e-9, p.f32_flops * 1e-9, p.read_bytes_per_second * 1e-9);
  benchmark::RunSpecifiedBenchmarks();
}
