// dropout: widths around a block of words, rows and columns far into a mask, in place and added.
#include "backend/ops/dropout.h"

#include <bit>
#include <cmath>

#include "backend/conformance/harness.h"

namespace qiao::conformance {
namespace {

void dropout_case(Harness& h, size_t line) {
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 17, 33}),
                width = h.pick<int64_t>({1, 3, 4, 7, 64, 65, 100, 576});
  Guarded x(h, DType::kF32, {tokens, width}, h.between(0, 5)),
      y(h, DType::kF32, {tokens, width}, h.between(0, 5));
  fill_activations(h, &x);
  fill_activations(h, &y);
  const bool in_place = h.chance(0.3);
  Guarded& out = in_place ? x : y;
  Dropout op{.x = x.device(), .y = out.device()};
  op.probability = h.pick({0.0f, 1e-9f, 0.05f, 0.5f, 0.999f});
  op.seed = static_cast<uint64_t>(h.between(0, INT64_MAX));
  op.stream = static_cast<uint32_t>(h.between(0, 1000));
  op.first_row = h.pick<uint32_t>({0, 1, 123456789, 4294960000u});
  op.first_column = h.pick<uint32_t>({0, 1, 2, 3, 4, 63, 576, 4294960001u});
  op.add = !in_place && h.chance(0.5);
  h.chip().dropout(op);
  x.download(line, "x", in_place);
  y.download(line, "y", !in_place);
  op.x = x.host(), op.y = out.host();
  h.law().dropout(op);
  for (int64_t i = 0; i < out.elements(); ++i) {
    const float a = out.result_at(i), b = out.host_at(i);
    if (!std::isfinite(b) && std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b)) continue;
    h.element(line, static_cast<double>(a), static_cast<double>(b), 0, i / width, i % width);
  }
}

}  // namespace

void conform_dropout(Harness& h) {
  const size_t line = h.line("dropout", "F32");
  for (int i = 0; i < (h.options().quick ? 12 : 60); ++i) h.run_case(line, [&] { dropout_case(h, line); });
  h.run_case(line, [&] {
    if (!h.benches()) return;
    Guarded x(h, DType::kF32, {512, 2048}), y(h, DType::kF32, {512, 2048});
    x.fill([&] { return h.normal(); });
    const Dropout op{.x = x.device(), .y = y.device(), .probability = 0.05f};
    h.bench(line, "T=512 K=2048", op.bytes(), op.flops(), Harness::Peak::kNone,
            [&] { h.chip().dropout(op); });
  });
}

}  // namespace qiao::conformance
