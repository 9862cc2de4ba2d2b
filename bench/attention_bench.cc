// Attention of the CPU chip at the shapes of three models: prefill of 512 tokens, decode at three contexts.
// Counters: multiply-adds per second as a share of the machine's F32 peak, bytes of keys and values read per
// second as a share of its read bandwidth; both peaks are measured first. --threads through
// QIAO_BENCH_THREADS.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"

namespace qiao {
namespace {

struct Model {
  int64_t heads, kv_heads, dim, window;
};
constexpr Model kSmolLm2{9, 3, 64, 0}, kQwen{12, 2, 128, 0}, kGemma{4, 1, 256, 512};

Backend& backend() {
  static const auto chip = [] {
    const char* threads = std::getenv("QIAO_BENCH_THREADS");
    return make_cpu_backend({.threads = threads != nullptr ? std::atoi(threads) : 0});
  }();
  return *chip;
}

const DevicePeaks& peaks() {
  static const DevicePeaks measured = backend().measure_peaks();
  return measured;
}

void attention(benchmark::State& state, const Model& model, int64_t queries, int64_t context) {
  constexpr int64_t kPageTokens = 64;
  const int64_t pages = (context + kPageTokens - 1) / kPageTokens;
  const auto memory = backend().make_kv_pages({pages, kPageTokens, model.kv_heads, model.dim, DType::kF16});
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  const int64_t step = 512;
  std::vector<float> k(static_cast<size_t>(step * model.kv_heads * model.dim)), v(k.size());
  for (float& x : k) x = normal(generator);
  for (float& x : v) x = normal(generator);
  for (int64_t first = 0; first < context; first += step) {
    const int64_t count = std::min(step, context - first);
    std::vector<int32_t> slots;
    for (int64_t j = 0; j < count; ++j) slots.push_back(static_cast<int32_t>(first + j));
    KvWrite write;
    write.k = Tensor(k.data(), DType::kF32, {count, model.kv_heads, model.dim});
    write.v = Tensor(v.data(), DType::kF32, {count, model.kv_heads, model.dim});
    write.slots = Tensor(slots.data(), DType::kI32, {count});
    write.pages = memory.get();
    backend().kv_write(write);
  }
  std::vector<float> q(static_cast<size_t>(queries * model.heads * model.dim)), out(q.size());
  for (float& x : q) x = normal(generator);
  std::vector<int32_t> table, lengths{static_cast<int32_t>(context)},
      starts{0, static_cast<int32_t>(queries)};
  for (int64_t page = 0; page < pages; ++page) table.push_back(static_cast<int32_t>(page));
  AttentionPaged op;
  op.q = Tensor(q.data(), DType::kF32, {queries, model.heads, model.dim});
  op.out = Tensor(out.data(), DType::kF32, {queries, model.heads, model.dim});
  op.pages = memory.get();
  op.page_table = Tensor(table.data(), DType::kI32, {1, pages});
  op.lengths = Tensor(lengths.data(), DType::kI32, {1});
  op.query_starts = Tensor(starts.data(), DType::kI32, {2});
  op.window = model.window;
  op.scale = 1.0f / std::sqrt(static_cast<float>(model.dim));
  const size_t scratch = backend().workspace_bytes(op);
  const Buffer workspace = backend().allocate(scratch);
  op.workspace = Tensor(workspace.data(), DType::kU8, {static_cast<int64_t>(scratch)});
  for (auto _ : state) backend().attention_paged(op);

  int64_t pairs = 0;
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t seen = context - queries + i + 1;
    pairs += model.window > 0 ? std::min(seen, model.window) : seen;
  }
  const int64_t keys = model.window > 0 ? std::min(context, model.window + queries) : context;
  const double calls = static_cast<double>(state.iterations());
  const auto share = [](double amount, double peak) { return peak > 0 ? amount / peak : 0.0; };
  state.counters["flops"] = benchmark::Counter(op.flops(pairs) * calls, benchmark::Counter::kIsRate);
  state.counters["f32_peak"] =
      benchmark::Counter(share(op.flops(pairs), peaks().f32_flops) * calls, benchmark::Counter::kIsRate);
  state.counters["bandwidth"] = benchmark::Counter(
      share(op.bytes(keys), peaks().read_bytes_per_second) * calls, benchmark::Counter::kIsRate);
}

#define QIAO_ATTENTION_BENCH(model)                                        \
  BENCHMARK_CAPTURE(attention, model / prefill / 512, k##model, 512, 512)  \
      ->UseRealTime()                                                      \
      ->Unit(benchmark::kMicrosecond);                                     \
  BENCHMARK_CAPTURE(attention, model / decode / 512, k##model, 1, 512)     \
      ->UseRealTime()                                                      \
      ->Unit(benchmark::kMicrosecond);                                     \
  BENCHMARK_CAPTURE(attention, model / decode / 4096, k##model, 1, 4096)   \
      ->UseRealTime()                                                      \
      ->Unit(benchmark::kMicrosecond);                                     \
  BENCHMARK_CAPTURE(attention, model / decode / 32768, k##model, 1, 32768) \
      ->UseRealTime()                                                      \
      ->Unit(benchmark::kMicrosecond)
QIAO_ATTENTION_BENCH(SmolLm2);
QIAO_ATTENTION_BENCH(Qwen);
QIAO_ATTENTION_BENCH(Gemma);
#undef QIAO_ATTENTION_BENCH

}  // namespace
}  // namespace qiao

BENCHMARK_MAIN();
