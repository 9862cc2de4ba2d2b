// gather (each weight format), gather_rows, and the way back.
#include "backend/ops/gather.h"

#include <cstring>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

void gather_case(Harness& h, size_t line, std::span<const SegmentSpec> segments, int64_t block,
                 int64_t tokens) {
  int64_t vocabulary = 0;
  for (const SegmentSpec& segment : segments) vocabulary += segment.rows;
  const int64_t columns = block == 1 ? h.pick<int64_t>({1, 7, 64, 129}) : block * h.between(1, 512 / block);
  const WeightPair table = make_weights(h, segments, columns);
  Guarded ids(h, DType::kI32, {tokens}), out(h, DType::kF32, {tokens, columns}, h.between(0, 5));
  Guarded law(h, DType::kF32, {tokens, columns});
  ids.fill([&] {
    return static_cast<int32_t>(h.pick<int64_t>({0, vocabulary - 1, h.between(0, vocabulary - 1)}));
  });
  const float scale = h.pick({1.0f, 1.0f, 25.298f, -0.5f});
  h.law().gather({table.law.get(), ids.host(), scale, law.host()});
  h.chip().gather({table.chip.get(), ids.device(), scale, out.device()});
  ids.download(line, "ids", false);
  out.download(line, "out");
  for (int64_t i = 0; i < out.elements(); ++i) {
    // Both sides round the same product once, from an exact value: at most the last place may differ.
    const double expected = law.host_at(i);
    h.element(line, out.result_at(i), expected, kUnit * std::abs(expected), i / columns, i % columns);
  }
}

void gather_rows_case(Harness& h, size_t line) {
  const int64_t tokens = h.between(1, 40), columns = h.pick<int64_t>({1, 7, 64, 129});
  const int64_t count = h.pick<int64_t>({0, 1, 5, 17});
  Guarded x(h, DType::kF32, {tokens, columns}, h.between(0, 5)), rows(h, DType::kI32, {count});
  Guarded out(h, DType::kF32, {count, columns}, h.between(0, 5));
  fill_activations(h, &x, 1e38f);
  rows.fill([&] { return static_cast<int32_t>(h.between(0, tokens - 1)); });
  h.chip().gather_rows({x.device(), rows.device(), out.device()});
  x.download(line, "x", false);
  rows.download(line, "rows", false);
  out.download(line, "out");
  for (int64_t i = 0; i < out.elements(); ++i) {
    const float expected = x.host_at(rows.host_at<int32_t>(i / columns) * columns + i % columns);
    h.element(line, out.result_at(i), expected, 0, i / columns, i % columns);
  }
}

void gather_backward_case(Harness& h, size_t line) {
  const int64_t vocabulary = h.pick<int64_t>({1, 2, 16, 100}),
                columns = h.pick<int64_t>({1, 7, 64, 129, 300});
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 7, 33, 200});
  Guarded ids(h, DType::kI32, {tokens}), dout(h, DType::kF32, {tokens, columns}, h.between(0, 5));
  Guarded dtable(h, DType::kF32, {vocabulary, columns});
  ids.fill([&] {
    return static_cast<int32_t>(h.pick<int64_t>({0, vocabulary - 1, h.between(0, vocabulary - 1)}));
  });
  fill_activations(h, &dout);
  dtable.fill([&] { return h.chance(0.5) ? 0.0f : h.normal(); });
  const float scale = h.pick({1.0f, 1.0f, 25.298f, -0.5f});
  const reference::GradientSums exact =
      reference::exact_gather_backward({ids.host(), scale, dout.host(), dtable.host()});
  std::vector<int64_t> met(static_cast<size_t>(vocabulary));
  for (int64_t t = 0; t < tokens; ++t) ++met[static_cast<size_t>(ids.host_at<int32_t>(t))];
  h.chip().gather_backward({ids.device(), scale, dout.device(), dtable.device()});
  ids.download(line, "ids", false);
  dout.download(line, "dout", false);
  dtable.download(line, "dtable");
  for (int64_t i = 0; i < dtable.elements(); ++i) {
    const auto rows = static_cast<double>(met[static_cast<size_t>(i / columns)]);
    const double bound = gamma(rows + 1) * exact.magnitude[static_cast<size_t>(i)] + rows * 0x1p-126;
    h.element(line, dtable.result_at(i), exact.sum[static_cast<size_t>(i)], rows == 0 ? 0 : bound,
              i / columns, i % columns);
  }
}

void gather_bench(Harness& h, size_t line, DType dtype) {
  if (!h.benches()) return;
  const SegmentSpec segment{dtype, 4096};
  const WeightPair table = make_weights(h, {&segment, 1}, 2048);
  Guarded ids(h, DType::kI32, {512}), out(h, DType::kF32, {512, 2048});
  ids.fill([&] { return static_cast<int32_t>(h.between(0, 4095)); });
  const Gather op{table.chip.get(), ids.device(), 1.0f, out.device()};
  h.bench(line, "T=512 V=4096 C=2048", op.bytes(), 0, Harness::Peak::kNone, [&] { h.chip().gather(op); });
}

}  // namespace

void conform_gather(Harness& h) {
  const int cases = h.options().quick ? 6 : 24;
  for (const DType dtype : weight_dtypes()) {
    const size_t line = h.line("gather", traits(dtype).name);
    for (int i = 0; i < cases; ++i) {
      const SegmentSpec segment{dtype, i == 0 ? 33 : h.pick<int64_t>({1, 16, 17, 100})};
      const int64_t tokens = i == 0 ? 17 : h.pick<int64_t>({0, 1, 2, 7, 33});
      h.run_case(line, [&] { gather_case(h, line, {&segment, 1}, traits(dtype).block_elements, tokens); });
    }
    h.run_case(line, [&] { gather_bench(h, line, dtype); });
  }
  const size_t line = h.line("gather", "mixed");
  const SegmentSpec segments[] = {{DType::kQ4_K, 33}, {DType::kQ6_K, 15}, {DType::kF16, 5}};
  for (int i = 0; i < cases; ++i)
    h.run_case(line, [&] { gather_case(h, line, segments, 256, h.between(0, 17)); });
}

void conform_gather_rows(Harness& h) {
  const size_t line = h.line("gather_rows", "F32");
  for (int i = 0; i < (h.options().quick ? 6 : 24); ++i) h.run_case(line, [&] { gather_rows_case(h, line); });
  h.run_case(line, [&] {
    if (!h.benches()) return;
    Guarded x(h, DType::kF32, {512, 2048}), rows(h, DType::kI32, {64}), out(h, DType::kF32, {64, 2048});
    x.fill([&] { return h.normal(); });
    rows.fill([&] { return static_cast<int32_t>(h.between(0, 511)); });
    const GatherRows op{x.device(), rows.device(), out.device()};
    h.bench(line, "S=64 C=2048", op.bytes(), 0, Harness::Peak::kNone, [&] { h.chip().gather_rows(op); });
  });
}

void conform_gather_backward(Harness& h) {
  const size_t line = h.line("gather_backward", "F32");
  for (int i = 0; i < (h.options().quick ? 8 : 40); ++i) {
    h.run_case(line, [&] { gather_backward_case(h, line); });
  }
  h.run_case(line, [&] {
    if (!h.benches()) return;
    Guarded ids(h, DType::kI32, {512}), dout(h, DType::kF32, {512, 2048}),
        dtable(h, DType::kF32, {4096, 2048});
    ids.fill([&] { return static_cast<int32_t>(h.between(0, 4095)); });
    dout.fill([&] { return h.normal(); });
    dtable.fill([] { return 0.0f; });
    const GatherBackward op{ids.device(), 1.0f, dout.device(), dtable.device()};
    h.bench(line, "T=512 V=4096 C=2048", op.bytes(), op.flops(), Harness::Peak::kNone,
            [&] { h.chip().gather_backward(op); });
  });
}

}  // namespace qiao::conformance
