// Sampling a row of the CPU chip: greedy, and temperature with each cut; V of two models.
#include <benchmark/benchmark.h>

#include <random>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"

namespace qiao {
namespace {

void sample(benchmark::State& state, const SampleRow& how) {
  const auto backend = make_cpu_backend({.threads = 1});
  const int64_t vocabulary = state.range(0);
  std::mt19937 generator(1);
  std::normal_distribution<float> normal(0.0f, static_cast<float>(state.range(1)));
  std::vector<float> logits(static_cast<size_t>(vocabulary));
  for (float& logit : logits) logit = normal(generator);
  SampleRow row = how;
  int32_t id = 0;
  float log_probability = 0;
  Sample op;
  op.logits = Tensor(logits.data(), DType::kF32, {1, vocabulary});
  op.rows = Tensor(&row, DType::kU8, {1, static_cast<int64_t>(sizeof row)});
  op.ids = Tensor(&id, DType::kI32, {1});
  op.log_probabilities = Tensor(&log_probability, DType::kF32, {1});
  const size_t scratch = backend->workspace_bytes(op);
  const Buffer workspace = backend->allocate(scratch);
  op.workspace = Tensor(workspace.data(), DType::kU8, {static_cast<int64_t>(scratch)});
  for (auto _ : state) {
    backend->sample(op);
    ++row.position;
  }
}

void shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"V", "deviation"})->ArgsProduct({{49152, 151936, 262144}, {1, 4}});
  bench->Unit(benchmark::kMicrosecond);
}
BENCHMARK_CAPTURE(sample, greedy, SampleRow{})->Apply(shapes);
BENCHMARK_CAPTURE(sample, temperature, SampleRow{.temperature = 0.8f})->Apply(shapes);
BENCHMARK_CAPTURE(sample, top_p, SampleRow{.temperature = 0.8f, .top_p = 0.95f})->Apply(shapes);
BENCHMARK_CAPTURE(sample, top_k_top_p, SampleRow{.temperature = 0.8f, .top_k = 40, .top_p = 0.95f})
    ->Apply(shapes);
BENCHMARK_CAPTURE(sample, min_p, SampleRow{.temperature = 0.8f, .min_p = 0.05f})->Apply(shapes);

}  // namespace
}  // namespace qiao

BENCHMARK_MAIN();
