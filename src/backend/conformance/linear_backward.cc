// linear_backward and grouped_linear_backward: each weight format with the compute kinds that take it, every
// choice of results, sums that begin with what was there.
#include <bit>
#include <cstring>

#include "backend/conformance/harness.h"
#include "backend/ops/linear.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

constexpr double kLeast = 0x1p-126;

struct BackwardShape {
  int64_t tokens, rows, columns;
};

// The bound of element i of dx or dw, a sum of `terms` products.
double gradient_bound(Harness& h, Compute compute, const reference::GradientSums& exact, size_t i,
                      int64_t terms) {
  const bool f8 = compute == Compute::kF8;
  const double m = static_cast<double>(terms) + (f8 ? 4 : 2);
  const double bound = gamma(m) * exact.magnitude[i] + kLeast * (m + exact.operands[i]);
  return f8 ? bound + block_sum_bound(h.chip(), terms, exact.products[i]) : bound;
}

void compare_sums(Harness& h, size_t line, Compute compute, const Guarded& actual,
                  const reference::GradientSums& exact, int64_t terms, int64_t columns) {
  for (int64_t i = 0; i < actual.elements(); ++i) {
    const auto at = static_cast<size_t>(i);
    h.element(line, actual.result_at(i), exact.sum[at], gradient_bound(h, compute, exact, at, terms),
              i / columns, i % columns);
  }
}

void compare_bias(Harness& h, size_t line, const Guarded& actual, const reference::GradientSums& exact,
                  int64_t tokens) {
  const double m = static_cast<double>(tokens) + 2;
  for (int64_t i = 0; i < actual.elements(); ++i) {
    const auto at = static_cast<size_t>(i);
    h.element(line, actual.result_at(i), exact.sum[at], gamma(m) * exact.magnitude[at] + kLeast * m, i, 0);
  }
}

// Weights whose way back this kind takes.
Scales scales_of(Compute compute) { return compute == Compute::kF8 ? Scales::kSquare : Scales::kOfRows; }

// A gradient as fill_activations, with numbers halfway between two of BF16 among them.
void fill_gradient(Harness& h, Guarded* dy) {
  fill_activations(h, dy);
  for (int64_t i = 0; i < dy->elements(); ++i) {
    if (!h.chance(0.1)) continue;
    dy->host_at(i) = h.pick({1.0f, -1.0f}) * (1 + static_cast<float>(2 * h.between(0, 127) + 1) * 0x1p-8f);
  }
  dy->upload();
}

void backward_case(Harness& h, size_t line, std::span<const SegmentSpec> segments, const BackwardShape& shape,
                   Compute compute) {
  const auto [tokens, rows, columns] = shape;
  const WeightPair weights = make_weights(h, segments, columns, 1, scales_of(compute));
  Guarded dy(h, DType::kF32, {tokens, rows}, h.between(0, 5)),
      x(h, DType::kF32, {tokens, columns}, h.between(0, 5)),
      dx(h, DType::kF32, {tokens, columns}, h.between(0, 5)), dw(h, DType::kF32, {rows, columns}),
      dbias(h, DType::kF32, {rows});
  fill_gradient(h, &dy);
  fill_gradient(h, &x);
  const bool with_dx = h.chance(0.8), add_dx = with_dx && h.chance(0.5);
  const bool with_dw = h.chance(0.7), with_dbias = h.chance(0.5);
  if (add_dx) dx.fill([&] { return h.normal(); });
  dw.fill([&] { return h.chance(0.5) ? 0.0f : 10 * h.normal(); });
  dbias.fill([&] { return h.normal(); });
  LinearBackward op, law;
  op.compute = law.compute = compute;
  op.add_dx = law.add_dx = add_dx;
  op.dy = dy.device(), law.dy = dy.host();
  op.weight = weights.chip.get(), law.weight = weights.law.get();
  if (with_dx) op.dx = dx.device(), law.dx = dx.host();
  if (with_dw) op.x = x.device(), op.dw = dw.device(), law.x = x.host(), law.dw = dw.host();
  if (with_dbias) op.dbias = dbias.device(), law.dbias = dbias.host();
  const reference::LinearGradients exact = reference::exact_linear_backward(law);
  h.give_workspace(&op);
  h.chip().linear_backward(op);
  dy.download(line, "dy", false);
  x.download(line, "x", false);
  dx.download(line, "dx", with_dx);
  dw.download(line, "dw", with_dw);
  dbias.download(line, "dbias", with_dbias);
  if (with_dx) compare_sums(h, line, compute, dx, exact.dx, rows, columns);
  if (with_dw) compare_sums(h, line, compute, dw, exact.dw, tokens, columns);
  if (with_dbias) compare_bias(h, line, dbias, exact.dbias, tokens);
}

// dx of the same rows alone, in 1s, 16 and 17: the same bytes.
void backward_invariance(Harness& h, size_t line, std::span<const SegmentSpec> segments, int64_t rows,
                         int64_t columns, Compute compute) {
  constexpr int64_t kTokens = 256;
  const WeightPair weights = make_weights(h, segments, columns, 1, scales_of(compute));
  Guarded dy(h, DType::kF32, {kTokens, rows});
  Guarded all(h, DType::kF32, {kTokens, columns}), some(h, DType::kF32, {kTokens, columns});
  fill_gradient(h, &dy);
  LinearBackward op;
  op.compute = compute;
  op.weight = weights.chip.get();
  op.dy = dy.device(), op.dx = all.device();
  h.give_workspace(&op);
  h.chip().linear_backward(op);
  all.download(line, "dx");
  for (const auto& [begin, count] :
       {std::pair<int64_t, int64_t>{0, 1}, {255, 1}, {0, 16}, {3, 17}, {100, 2}}) {
    if (!h.chip().batch_invariant()) break;
    op.dy = dy.device().slice(begin, count), op.dx = some.device().slice(begin, count);
    h.give_workspace(&op);
    h.chip().linear_backward(op);
    some.download(line, "dx");
    const auto bytes = static_cast<size_t>(count * columns) * sizeof(float);
    if (std::memcmp(some.result().as<float>() + begin * columns, all.result().as<float>() + begin * columns,
                    bytes) != 0) {
      h.fail(line, fmt::format("dx of rows {} to {} differs from the same among 256", begin, begin + count));
    }
  }
}

void backward_bench(Harness& h, size_t line, DType dtype, Compute compute, bool of_weight,
                    const BackwardShape& shape = {512, 1536, 768}) {
  if (!h.benches()) return;
  const auto [tokens, rows, columns] = shape;
  const SegmentSpec segment{dtype, rows};
  const WeightPair weights = make_weights(h, {&segment, 1}, columns, 1, scales_of(compute));
  Guarded dy(h, DType::kF32, {tokens, rows}), x(h, DType::kF32, {tokens, columns}),
      dx(h, DType::kF32, {tokens, columns}), dw(h, DType::kF32, {rows, columns});
  for (Guarded* tensor : {&dy, &x, &dw}) tensor->fill([&] { return h.normal(); });
  LinearBackward op;
  op.compute = compute;
  op.weight = weights.chip.get();
  op.dy = dy.device();
  if (of_weight) op.x = x.device(), op.dw = dw.device();
  if (!of_weight) op.dx = dx.device();
  h.give_workspace(&op);
  h.bench(line, fmt::format("{} T={} N={} K={}", of_weight ? "dw" : "dx", tokens, rows, columns), op.bytes(),
          op.flops(), peak_of(compute), [&] { h.chip().linear_backward(op); });
}

void grouped_backward_case(Harness& h, size_t line, std::span<const SegmentSpec> segments, int64_t columns,
                           Compute compute) {
  const int64_t experts = h.between(1, 6);
  int64_t rows = 0, tokens = 0;
  for (const SegmentSpec& segment : segments) rows += segment.rows;
  const WeightPair weights = make_weights(h, segments, columns, experts, scales_of(compute));
  Guarded counts(h, DType::kI32, {experts});
  const bool long_ones = compute == Compute::kF8;  // more than a block of tokens
  counts.fill([&] {
    return static_cast<int32_t>(long_ones && h.chance(0.2) ? h.between(120, 300)
                                                           : h.pick<int64_t>({0, 0, 1, 2, 5, 17}));
  });
  for (int64_t e = 0; e < experts; ++e) tokens += counts.host_at<int32_t>(e);
  Guarded dy(h, DType::kF32, {tokens, rows}, h.between(0, 5)),
      x(h, DType::kF32, {tokens, columns}, h.between(0, 5)),
      dx(h, DType::kF32, {tokens, columns}, h.between(0, 5)), dw(h, DType::kF32, {experts, rows, columns});
  fill_gradient(h, &dy);
  fill_gradient(h, &x);
  const bool with_dx = h.chance(0.8), add_dx = with_dx && h.chance(0.5), with_dw = h.chance(0.7);
  if (add_dx) dx.fill([&] { return h.normal(); });
  dw.fill([&] { return h.chance(0.5) ? 0.0f : 10 * h.normal(); });
  GroupedLinearBackward op, law;
  op.compute = law.compute = compute;
  op.add_dx = law.add_dx = add_dx;
  op.dy = dy.device(), law.dy = dy.host();
  op.weight = weights.chip.get(), law.weight = weights.law.get();
  op.counts = counts.device(), law.counts = counts.host();
  if (with_dx) op.dx = dx.device(), law.dx = dx.host();
  if (with_dw) op.x = x.device(), op.dw = dw.device(), law.x = x.host(), law.dw = dw.host();
  const reference::LinearGradients exact = reference::exact_grouped_linear_backward(law);
  const std::vector<int64_t> expert_of = reference::experts_of_rows(law.counts);
  // A row alone with its expert, from what was there.
  const int64_t row = tokens > 0 ? h.between(0, tokens - 1) : 0;
  Guarded alone(h, DType::kI32, {experts}), one(h, DType::kF32, {1, columns});
  if (with_dx && tokens > 0) {
    for (int64_t e = 0; e < experts; ++e)
      alone.host_at<int32_t>(e) = e == expert_of[static_cast<size_t>(row)] ? 1 : 0;
    for (int64_t k = 0; k < columns; ++k) one.host_at(k) = dx.host_at(row * columns + k);
    alone.upload();
    one.upload();
  }
  h.give_workspace(&op);
  h.chip().grouped_linear_backward(op);
  dy.download(line, "dy", false);
  x.download(line, "x", false);
  counts.download(line, "counts", false);
  dx.download(line, "dx", with_dx);
  dw.download(line, "dw", with_dw);
  if (with_dx) compare_sums(h, line, compute, dx, exact.dx, rows, columns);
  if (with_dw) {
    for (int64_t i = 0; i < dw.elements(); ++i) {
      const auto at = static_cast<size_t>(i);
      const int64_t terms = counts.host_at<int32_t>(i / (rows * columns));
      h.element(line, dw.result_at(i), exact.dw.sum[at], gradient_bound(h, compute, exact.dw, at, terms),
                i / columns, i % columns);
    }
  }
  if (!with_dx || tokens == 0 || !h.chip().batch_invariant()) return;
  op.dy = dy.device().slice(row, 1), op.x = {}, op.dw = {};
  op.counts = alone.device(), op.dx = one.device();
  h.give_workspace(&op);
  h.chip().grouped_linear_backward(op);
  one.download(line, "dx");
  for (int64_t k = 0; k < columns; ++k) {
    const float a = one.result_at(k), b = dx.result_at(row * columns + k);
    if (std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b)) continue;
    h.fail(line, fmt::format("dx of row {} of {} differs from the same row alone", row, tokens));
    return;
  }
}

void grouped_backward_bench(Harness& h, size_t line, DType dtype, Compute compute, bool of_weight) {
  if (!h.benches()) return;
  const int64_t experts = 8, tokens = 512, rows = 768, columns = 1024;
  const SegmentSpec segment{dtype, rows};
  const WeightPair weights = make_weights(h, {&segment, 1}, columns, experts, scales_of(compute));
  Guarded counts(h, DType::kI32, {experts}), dy(h, DType::kF32, {tokens, rows}),
      x(h, DType::kF32, {tokens, columns}), dx(h, DType::kF32, {tokens, columns}),
      dw(h, DType::kF32, {experts, rows, columns});
  counts.fill([] { return int32_t{tokens / experts}; });
  for (Guarded* tensor : {&dy, &x, &dw}) tensor->fill([&] { return h.normal(); });
  GroupedLinearBackward op;
  op.compute = compute;
  op.weight = weights.chip.get();
  op.dy = dy.device(), op.counts = counts.device();
  if (of_weight) op.x = x.device(), op.dw = dw.device();
  if (!of_weight) op.dx = dx.device();
  h.give_workspace(&op);
  h.bench(line,
          fmt::format("{} E={} T'={} N={} K={}", of_weight ? "dw" : "dx", experts, tokens, rows, columns),
          op.bytes(), op.flops(), peak_of(compute), [&] { h.chip().grouped_linear_backward(op); });
}

// Calls body(dtype, compute, the op's line of both).
template <typename Body>
void each_gradient_kind(Harness& h, std::string_view op, Body body) {
  for (const DType dtype : weight_dtypes()) {
    body(dtype, Compute::kF32, h.line(op, traits(dtype).name));
    if (dtype != DType::kBF16 && dtype != DType::kF8_128) continue;
    const Compute compute = dtype == DType::kBF16 ? Compute::kBF16 : Compute::kF8;
    body(dtype, compute, h.line(op, fmt::format("{} {}", traits(dtype).name, name(compute))));
  }
}

// Fused projections: rows of several formats in one handle.
constexpr SegmentSpec kMixedSegments[] = {
    {DType::kQ4_K, 33}, {DType::kF16, 8}, {DType::kQ6_K, 15}, {DType::kF32, 3}};
constexpr SegmentSpec kFusedSegments[] = {{DType::kBF16, 33}, {DType::kBF16, 8}, {DType::kBF16, 19}};
constexpr SegmentSpec kFusedF8Segments[] = {
    {DType::kF8_128, 150}, {DType::kF8_128, 8}, {DType::kF8_128, 523}};

}  // namespace

void conform_linear_backward(Harness& h) {
  const bool quick = h.options().quick;
  each_gradient_kind(h, "linear_backward", [&](DType dtype, Compute compute, size_t line) {
    const int64_t block = traits(dtype).block_elements;
    for (int i = 0; i < (quick ? 8 : 30); ++i) {
      const SegmentSpec segment{dtype, h.pick<int64_t>({1, 2, 7, 15, 16, 17, 33, 64, 100})};
      const int64_t columns = h.chance(0.3) ? block : block * h.between(1, std::max<int64_t>(1, 320 / block));
      const BackwardShape shape{h.pick<int64_t>({0, 1, 2, 5, 6, 7, 16, 17, 33, 100}), segment.rows, columns};
      h.run_case(line, [&] { backward_case(h, line, {&segment, 1}, shape, compute); });
    }
    const SegmentSpec segment{dtype, 33};
    const int64_t columns = block * (block == 1 ? 70 : block == 32 ? 3 : 1);
    h.run_case(line, [&] { backward_invariance(h, line, {&segment, 1}, 33, columns, compute); });
    // Sums longer than any kernel packs at a time, and rows wider than it unpacks.
    const SegmentSpec tall{dtype, 1100};
    const int64_t few = block == 1 ? 5 : block;
    const bool rounds = compute != Compute::kF32;  // dy and x
    if (!quick || dtype == DType::kF32 || rounds) {
      h.run_case(line, [&] { backward_case(h, line, {&tall, 1}, {9, 1100, few}, compute); });
      h.run_case(line, [&] { backward_case(h, line, {&segment, 1}, {1100, 33, few}, compute); });
      const int64_t wide = block * (block == 1 ? 1351 : 1536 / block);
      h.run_case(line, [&] { backward_case(h, line, {&segment, 1}, {7, 33, wide}, compute); });
    }
    if (rounds) {  // and one whose rows fill more than a tile in each direction
      const SegmentSpec large{dtype, 300};
      const int64_t many = block == 1 ? 333 : 3 * block;
      h.run_case(line, [&] { backward_case(h, line, {&large, 1}, {150, 300, many}, compute); });
      h.run_case(line, [&] { backward_invariance(h, line, {&large, 1}, 300, many, compute); });
    }
    h.run_case(line, [&] {
      backward_bench(h, line, dtype, compute, false);
      if (dtype == DType::kF32 || rounds) backward_bench(h, line, dtype, compute, true);
    });
  });
  const size_t line = h.line("linear_backward", "mixed");
  for (int i = 0; i < (quick ? 8 : 16); ++i) {
    const BackwardShape shape{h.pick<int64_t>({1, 2, 17, 33}), 59, 256 * h.between(1, 4)};
    h.run_case(line, [&] { backward_case(h, line, kMixedSegments, shape, Compute::kF32); });
  }
  h.run_case(line, [&] { backward_invariance(h, line, kMixedSegments, 59, 256, Compute::kF32); });
  // Fused projections in BF16: segments that end inside a group of rows.
  const size_t fused = h.line("linear_backward", "BF16 bf16");
  for (int i = 0; i < (quick ? 4 : 16); ++i) {
    const BackwardShape shape{h.pick<int64_t>({1, 2, 17, 33}), 60, h.between(1, 100)};
    h.run_case(fused, [&] { backward_case(h, fused, kFusedSegments, shape, Compute::kBF16); });
  }
  // In E4M3: blocks of dy end with segments.
  const size_t fused_f8 = h.line("linear_backward", "F8_128 f8");
  for (int i = 0; i < (quick ? 3 : 8); ++i) {
    const BackwardShape shape{h.pick<int64_t>({1, 2, 17, 33}), 681, kF8Block * h.between(1, 2)};
    h.run_case(fused_f8, [&] { backward_case(h, fused_f8, kFusedF8Segments, shape, Compute::kF8); });
  }
  h.run_case(fused_f8, [&] { backward_invariance(h, fused_f8, kFusedF8Segments, 681, 128, Compute::kF8); });
}

void conform_grouped_linear_backward(Harness& h) {
  const int cases = h.options().quick ? 6 : 20;
  each_gradient_kind(h, "grouped_linear_backward", [&](DType dtype, Compute compute, size_t line) {
    const int64_t block = traits(dtype).block_elements;
    for (int i = 0; i < cases; ++i) {
      const SegmentSpec segment{dtype, h.pick<int64_t>({1, 2, 7, 15, 16, 17, 33, 64})};
      const int64_t columns = h.chance(0.3) ? block : block * h.between(1, std::max<int64_t>(1, 320 / block));
      h.run_case(line, [&] { grouped_backward_case(h, line, {&segment, 1}, columns, compute); });
    }
    h.run_case(line, [&] {
      grouped_backward_bench(h, line, dtype, compute, false);
      if (dtype == DType::kF32 || compute != Compute::kF32)
        grouped_backward_bench(h, line, dtype, compute, true);
    });
  });
  const size_t line = h.line("grouped_linear_backward", "mixed");
  for (int i = 0; i < cases; ++i)
    h.run_case(line,
               [&] { grouped_backward_case(h, line, kMixedSegments, 256 * h.between(1, 2), Compute::kF32); });
}

}  // namespace qiao::conformance
