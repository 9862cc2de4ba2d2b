// linear and grouped_linear: each weight format times each compute kind.
#include "backend/ops/linear.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"
#include "base/error.h"
#include "base/units.h"

namespace qiao::conformance {
namespace {

// The largest slope of an activation.
double slope(Activation activation) {
  return activation == Activation::kNone || activation == Activation::kSoftCap ? 1.0 : 1.13;
}

struct Shape {
  int64_t tokens, rows, columns;
};

Shape random_shape(Harness& h, std::span<const SegmentSpec> segments) {
  int64_t block = 1;
  int64_t rows = 0;
  for (const SegmentSpec& s : segments) {
    block = std::max<int64_t>(block, traits(s.dtype).block_elements);
    rows += s.rows;
  }
  const int64_t limit = h.options().quick ? 512 : 2048;
  const int64_t blocks = h.chance(0.3) ? 1 : h.between(1, std::max<int64_t>(1, limit / block));
  return {h.pick<int64_t>({0, 1, 1, 2, 3, 4, 5, 8, 15, 16, 17, 33}), rows, blocks * block};
}

int64_t random_rows_count(Harness& h) { return h.pick<int64_t>({1, 2, 7, 15, 16, 17, 31, 33, 48, 64, 100}); }

void linear_case(Harness& h, size_t line, std::span<const SegmentSpec> segments, Compute compute) {
  const Shape shape = random_shape(h, segments);
  const WeightPair weights = make_weights(h, segments, shape.columns);
  Guarded x(h, DType::kF32, {shape.tokens, shape.columns}, h.between(0, 5));
  Guarded y(h, DType::kF32, {shape.tokens, shape.rows}, h.between(0, 5));
  Guarded bias(h, DType::kF32, {shape.rows});
  Guarded residual(h, DType::kF32, {shape.tokens, shape.rows}, h.between(0, 5));
  fill_activations(h, &x);
  bias.fill([&] { return h.normal(); });
  residual.fill([&] { return h.normal(); });

  Linear op;
  op.compute = compute;
  op.activation = h.pick({Activation::kNone, Activation::kNone, Activation::kSilu, Activation::kGelu,
                          Activation::kGeluTanh, Activation::kSoftCap});
  if (op.activation == Activation::kSoftCap) op.soft_cap = 30;
  const bool with_bias = h.chance(0.5), with_residual = h.chance(0.5);
  const bool aliased = with_residual && h.chance(0.5);  // y holds the residual before the call
  if (aliased) {
    for (int64_t i = 0; i < y.elements(); ++i) y.host_at(i) = residual.host_at(i);
    y.upload();
  }
  Linear law = op;
  law.weight = weights.law.get();
  law.x = x.host();
  if (with_bias) law.bias = bias.host();
  if (with_residual) law.residual = residual.host();
  law.y = y.host();
  op.weight = weights.chip.get();
  op.x = x.device();
  if (with_bias) op.bias = bias.device();
  if (with_residual) op.residual = aliased ? y.device() : residual.device();
  op.y = y.device();
  h.give_workspace(&op);
  h.chip().linear(op);
  x.download(line, "x", false);
  bias.download(line, "bias", false);
  residual.download(line, "residual", false);
  y.download(line, "y");

  const std::vector<int64_t> experts(static_cast<size_t>(shape.tokens), 0);
  const reference::Products products = reference::exact_products(law.x, *law.weight, compute, experts);
  const std::vector<double> exact = reference::exact_linear(law, products);
  for (int64_t i = 0; i < shape.tokens * shape.rows; ++i) {
    const int64_t t = i / shape.rows, n = i % shape.rows;
    const auto at = static_cast<size_t>(i);
    const double b = with_bias ? bias.host_at(n) : 0.0f;
    const double r = with_residual ? residual.host_at(i) : 0.0f;
    double bound = sum_bound(h.chip(), compute, shape.columns, products.magnitude[at] + std::abs(b),
                             products.x_sum[static_cast<size_t>(t)], products.w_sum[static_cast<size_t>(n)]);
    if (op.activation != Activation::kNone) {
      bound = slope(op.activation) * bound +
              16 * kUnit * (std::abs(products.sum[at] + b) + std::abs(exact[at] - r));
    }
    bound += kUnit * (std::abs(exact[at]) + std::abs(r));
    h.element(line, y.result_at(i), exact[at], bound, t, n);
  }
}

bool same_rows(const float* a, const float* b, int64_t width) {
  return std::memcmp(a, b, static_cast<size_t>(width) * sizeof(float)) == 0;
}

// The same rows alone, in 1s, 16, 17, 40, 100 and 256: the same bytes.
void linear_invariance(Harness& h, size_t line, std::span<const SegmentSpec> segments, Compute compute) {
  int64_t rows = 0, block = 1;
  for (const SegmentSpec& s : segments) {
    rows += s.rows;
    block = std::max<int64_t>(block, traits(s.dtype).block_elements);
  }
  const int64_t columns = block * (block == 1 ? 200 : block == 32 ? 9 : block == 128 ? 3 : 2);
  constexpr int64_t kTokens = 256;
  const WeightPair weights = make_weights(h, segments, columns);
  Guarded x(h, DType::kF32, {kTokens, columns}), all(h, DType::kF32, {kTokens, rows});
  Guarded some(h, DType::kF32, {kTokens, rows});
  fill_activations(h, &x);
  Linear op;
  op.weight = weights.chip.get();
  op.compute = compute;
  op.x = x.device();
  op.y = all.device();
  h.give_workspace(&op);
  h.chip().linear(op);
  all.download(line, "y");
  Linear law;
  law.weight = weights.law.get();
  law.compute = compute;
  law.x = x.host().slice(0, 4);
  const reference::Products products = reference::exact_products(law.x, *law.weight, compute, {0, 0, 0, 0});
  for (int64_t i = 0; i < 4 * rows; ++i) {
    const auto at = static_cast<size_t>(i);
    const double bound = sum_bound(h.chip(), compute, columns, products.magnitude[at],
                                   products.x_sum[at / static_cast<size_t>(rows)],
                                   products.w_sum[at % static_cast<size_t>(rows)]) +
                         kUnit * std::abs(products.sum[at]);
    h.element(line, all.result_at(i), products.sum[at], bound, i / rows, i % rows);
  }
  constexpr std::pair<int64_t, int64_t> kParts[] = {{0, 1},   {255, 1},   {0, 16},  {3, 17},
                                                    {60, 40}, {130, 100}, {100, 2}, {200, 5}};
  for (const auto& [begin, count] : kParts) {
    if (!h.chip().batch_invariant()) break;
    op.x = x.device().slice(begin, count);
    op.y = some.device().slice(begin, count);
    h.give_workspace(&op);
    h.chip().linear(op);
    some.download(line, "y");
    for (int64_t t = begin; t < begin + count; ++t) {
      const float* one = some.result().as<float>() + t * rows;
      if (!same_rows(one, all.result().as<float>() + t * rows, rows)) {
        h.fail(line, fmt::format("row {} among {} differs from the same row among 256", t, count));
        return;
      }
    }
  }
}

// More than a last-level cache holds, so that weights come from memory as they do between two tokens.
constexpr int64_t kBenchBytes = int64_t{96} << 20;
int64_t rows_of(DType dtype, int64_t bytes, int64_t columns) {
  return bytes / row_bytes(dtype, columns) / 16 * 16;
}

// A few random rows again and again: making random numbers would take longer than the benchmark.
std::unique_ptr<Weight> bench_weight(Harness& h, DType dtype, int64_t rows, int64_t columns) {
  const int64_t few = std::min<int64_t>(rows, 16);
  const std::vector<std::byte> bytes = random_rows(h, dtype, few, columns);
  std::vector<std::byte> whole;
  whole.reserve(static_cast<size_t>((rows + few - 1) * row_bytes(dtype, columns)));
  for (int64_t n = 0; n < rows; n += few) whole.insert(whole.end(), bytes.begin(), bytes.end());
  WeightSource source;
  source.columns = columns;
  source.parts = {{dtype, rows, whole.data()}};
  return h.chip().make_weight(source);
}

Buffer bench_rows(Harness& h, int64_t tokens, int64_t columns) {
  const int64_t few = std::min<int64_t>(tokens, 64), row = columns * static_cast<int64_t>(sizeof(float));
  std::vector<float> rows(static_cast<size_t>(few * columns));
  for (float& value : rows) value = h.normal();
  Buffer all = h.chip().allocate(static_cast<size_t>(tokens * row));
  for (int64_t t = 0; t < tokens; t += few) {
    h.chip().upload(static_cast<std::byte*>(all.data()) + t * row, rows.data(),
                    static_cast<size_t>(std::min(few, tokens - t) * row));
  }
  return all;
}

void linear_bench(Harness& h, size_t line, const Weight& weight, Compute compute, int64_t tokens) {
  const int64_t rows = weight.rows(), columns = weight.columns();
  const Buffer x = bench_rows(h, tokens, columns);
  const Buffer y = h.chip().allocate(static_cast<size_t>((tokens + 1) * rows) * sizeof(float));
  const Tensor all_x(x.data(), DType::kF32, {tokens, columns}),
      all_y(y.data(), DType::kF32, {tokens + 1, rows});
  Linear op;
  op.weight = &weight;
  op.compute = compute;
  op.x = all_x, op.y = all_y.slice(0, tokens);
  h.give_workspace(&op);
  h.bench(line, fmt::format("T={} N={} K={}", tokens, rows, columns), op.bytes(), op.flops(),
          peak_of(compute), [&] { h.chip().linear(op); });
  if (tokens == 1 || !h.chip().batch_invariant()) return;
  // The last row alone: these are kernels and tiles that smaller shapes do not have.
  op.x = all_x.slice(tokens - 1, 1), op.y = all_y.slice(tokens, 1);
  h.give_workspace(&op);
  h.chip().linear(op);
  std::vector<float> two(static_cast<size_t>(2 * rows));
  h.chip().download(two.data(), all_y.slice(tokens - 1, 2).data, two.size() * sizeof(float));
  if (!same_rows(two.data(), two.data() + rows, rows)) {
    h.fail(line, fmt::format("the last of {} rows differs from the same row alone", tokens));
  }
}

// Before it is made: the file's bytes lie in this machine's memory, too.
void check_room(Harness& h, DType dtype, const ProductShape& shape) {
  const DeviceInfo info = h.chip().describe();
  const auto weight = static_cast<double>(shape.rows) * static_cast<double>(row_bytes(dtype, shape.columns));
  const auto most = static_cast<double>(*std::ranges::max_element(h.options().tokens));
  const double rows = most * static_cast<double>(shape.rows + shape.columns) * sizeof(float);
  const double needed = (weight + rows) * (info.own_memory ? 1 : 2);
  if (needed <= static_cast<double>(info.free_bytes)) return;
  throw_error(ErrorKind::kTooLarge, "--products: {}x{} in {} with {} tokens takes {}, of which {} is free",
              shape.rows, shape.columns, traits(dtype).name, most,
              format_bytes(static_cast<uint64_t>(needed)), format_bytes(info.free_bytes));
}

void time_products(Harness& h) {
  for (const DType dtype : {DType::kBF16, DType::kF8_128}) {
    const Compute compute = dtype == DType::kBF16 ? Compute::kBF16 : Compute::kF8;
    for (const ProductShape& shape : h.options().products) {
      if (shape.columns % traits(dtype).block_elements != 0) continue;
      const size_t line = h.line("linear", fmt::format("{} {}", traits(dtype).name, name(compute)));
      h.run_case(line, [&] {
        check_room(h, dtype, shape);
        const std::unique_ptr<Weight> weight = bench_weight(h, dtype, shape.rows, shape.columns);
        for (const int64_t tokens : h.options().tokens) linear_bench(h, line, *weight, compute, tokens);
      });
    }
  }
}

void grouped_case(Harness& h, size_t line, std::span<const SegmentSpec> segments, Compute compute) {
  const Shape shape = random_shape(h, segments);
  const int64_t experts = h.between(1, 6);
  const WeightPair weights = make_weights(h, segments, std::min<int64_t>(shape.columns, 768), experts);
  const int64_t columns = weights.law->columns();
  Guarded counts(h, DType::kI32, {experts});
  counts.fill([&] { return static_cast<int32_t>(h.pick<int64_t>({0, 0, 1, 2, 5, 17})); });
  int64_t tokens = 0;
  for (int64_t e = 0; e < experts; ++e) tokens += counts.host_at<int32_t>(e);
  Guarded x(h, DType::kF32, {tokens, columns}, h.between(0, 5));
  Guarded y(h, DType::kF32, {tokens, shape.rows}, h.between(0, 5));
  fill_activations(h, &x);
  GroupedLinear law, op;
  law.compute = op.compute = compute;
  law.weight = weights.law.get();
  op.weight = weights.chip.get();
  law.x = x.host(), law.counts = counts.host(), law.y = y.host();
  op.x = x.device(), op.counts = counts.device(), op.y = y.device();
  h.give_workspace(&op);
  h.chip().grouped_linear(op);
  x.download(line, "x", false);
  counts.download(line, "counts", false);
  y.download(line, "y");
  const std::vector<int64_t> expert_of = reference::experts_of_rows(law.counts);
  const reference::Products products = reference::exact_products(law.x, *law.weight, compute, expert_of);
  for (int64_t i = 0; i < tokens * shape.rows; ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t t = i / shape.rows, n = i % shape.rows;
    const double w_sum =
        products.w_sum[static_cast<size_t>(expert_of[static_cast<size_t>(t)] * shape.rows + n)];
    const double bound = sum_bound(h.chip(), compute, columns, products.magnitude[at],
                                   products.x_sum[static_cast<size_t>(t)], w_sum) +
                         kUnit * std::abs(products.sum[at]);
    h.element(line, y.result_at(i), products.sum[at], bound, t, n);
  }
  // Each row alone with its expert: the same bytes.
  if (tokens == 0 || !h.chip().batch_invariant()) return;
  const int64_t row = h.between(0, tokens - 1);
  Guarded alone(h, DType::kI32, {experts}), one(h, DType::kF32, {1, shape.rows});
  for (int64_t e = 0; e < experts; ++e) alone.host_at<int32_t>(e) = e == expert_of[static_cast<size_t>(row)];
  alone.upload();
  op.x = x.device().slice(row, 1), op.counts = alone.device(), op.y = one.device();
  h.give_workspace(&op);
  h.chip().grouped_linear(op);
  one.download(line, "y");
  for (int64_t n = 0; n < shape.rows; ++n) {
    const float a = one.result_at(n), b = y.result_at(row * shape.rows + n);
    if (std::bit_cast<uint32_t>(a) != std::bit_cast<uint32_t>(b)) {
      h.fail(line, fmt::format("row {} of {} differs from the same row alone", row, tokens));
      return;
    }
  }
}

void grouped_bench(Harness& h, size_t line, DType dtype, Compute compute) {
  if (!h.benches()) return;
  const int64_t experts = 8, rows = 768, columns = 2048, tokens = 8;
  const SegmentSpec segment{dtype, rows};
  const WeightPair weights = make_weights(h, {&segment, 1}, columns, experts);
  Guarded counts(h, DType::kI32, {experts}), x(h, DType::kF32, {tokens, columns}),
      y(h, DType::kF32, {tokens, rows});
  counts.fill([] { return int32_t{1}; });
  x.fill([&] { return h.normal(); });
  GroupedLinear op;
  op.weight = weights.chip.get();
  op.compute = compute;
  op.x = x.device(), op.counts = counts.device(), op.y = y.device();
  h.give_workspace(&op);
  h.bench(line, "E=8 T'=8 N=768 K=2048", op.bytes(), op.flops(), peak_of(compute),
          [&] { h.chip().grouped_linear(op); });
}

// Fused projections: rows of several formats in one handle.
std::vector<std::vector<SegmentSpec>> mixed_segments() {
  return {{{DType::kQ4_K, 33}, {DType::kQ4_K, 8}, {DType::kQ6_K, 15}},
          {{DType::kQ8_0, 16}, {DType::kQ4_0, 1}, {DType::kIQ4_NL, 30}},
          {{DType::kF8_128, 33}, {DType::kF8_128, 8}, {DType::kF8_128, 15}}};
}

}  // namespace

void conform_linear(Harness& h) {
  if (!h.options().products.empty()) return time_products(h);
  const int cases = h.options().quick ? 10 : 30;
  for (const DType dtype : weight_dtypes()) {
    for (const Compute compute : computes_of(dtype)) {
      const size_t line = h.line("linear", fmt::format("{} {}", traits(dtype).name, name(compute)));
      for (int i = 0; i < cases; ++i) {
        const SegmentSpec segment{dtype, random_rows_count(h)};
        h.run_case(line, [&] { linear_case(h, line, {&segment, 1}, compute); });
      }
      const SegmentSpec segment{dtype, 33};
      h.run_case(line, [&] { linear_invariance(h, line, {&segment, 1}, compute); });
      if (!h.benches()) continue;
      h.run_case(line, [&] {
        const std::unique_ptr<Weight> large = bench_weight(h, dtype, rows_of(dtype, kBenchBytes, 4096), 4096);
        linear_bench(h, line, *large, compute, 1);                                 // all reading
        linear_bench(h, line, *bench_weight(h, dtype, 2048, 2048), compute, 256);  // all arithmetic
        // And as a batch that decodes and a prompt have it, where that takes no second.
        if (h.measured(peak_of(compute)).per_second > 1e14) {
          linear_bench(h, line, *large, compute, 32);
          linear_bench(h, line, *bench_weight(h, dtype, 6144, 4096), compute, 2048);
        }
      });
      conform_linear_around(h, dtype, compute);
    }
  }
  for (const std::vector<SegmentSpec>& segments : mixed_segments()) {
    const bool f8 = segments.front().dtype == DType::kF8_128;
    for (const Compute compute : {Compute::kF32, f8 ? Compute::kF8 : Compute::kQ8}) {
      const size_t line = h.line("linear", fmt::format("mixed {}", name(compute)));
      for (int i = 0; i < cases; ++i) h.run_case(line, [&] { linear_case(h, line, segments, compute); });
      h.run_case(line, [&] { linear_invariance(h, line, segments, compute); });
    }
  }
}

void conform_grouped_linear(Harness& h) {
  const int cases = h.options().quick ? 4 : 16;
  for (const DType dtype : weight_dtypes()) {
    for (const Compute compute : computes_of(dtype)) {
      const size_t line = h.line("grouped_linear", fmt::format("{} {}", traits(dtype).name, name(compute)));
      for (int i = 0; i < cases; ++i) {
        const SegmentSpec segment{dtype, random_rows_count(h)};
        h.run_case(line, [&] { grouped_case(h, line, {&segment, 1}, compute); });
      }
      h.run_case(line, [&] { grouped_bench(h, line, dtype, compute); });
      conform_grouped_linear_around(h, dtype, compute);
    }
  }
}

}  // namespace qiao::conformance
