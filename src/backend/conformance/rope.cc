// rope: both layouts, whole and partial rotation, q and k apart or inside one fused buffer.
#include "backend/ops/rope.h"

#include <cstring>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {

int64_t rope_other(const Rope& op, int64_t d) {
  const int64_t pairs = op.inverse_frequencies.shape[0];
  if (d >= 2 * pairs) return d;
  if (op.layout == Rope::Layout::kInterleaved) return d ^ 1;
  return d < pairs ? d + pairs : d - pairs;
}

namespace {

// Elements of one pair share |a| + |b|; the rest must stay as they are.
double rope_bound(const Rope& op, const Tensor& heads, int64_t t, int64_t head, int64_t d) {
  const int64_t other = rope_other(op, d);
  if (other == d) return 0;
  const double magnitude = std::abs(static_cast<double>(reference::at(heads, t, head, d))) +
                           std::abs(static_cast<double>(reference::at(heads, t, head, other)));
  return 6 * kUnit * std::abs(static_cast<double>(op.scale)) * magnitude + 0x1p-126;
}

void rope_case(Harness& h, size_t line, Rope::Layout layout) {
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 5, 17, 33}),
                width = h.pick<int64_t>({2, 8, 64, 80, 96, 128, 33});
  const int64_t query = h.pick<int64_t>({1, 3, 8}), kv = h.pick<int64_t>({1, 2});
  const int64_t pairs = h.chance(0.6) ? width / 2 : h.between(1, width / 2);
  // q, k and v side by side, as a fused projection leaves them.
  Guarded fused(h, DType::kF32, {tokens, query + 2 * kv, width}, h.between(0, 1) * 3);
  fill_activations(h, &fused, 1e15f);
  Guarded positions(h, DType::kI32, {tokens}), frequencies(h, DType::kF32, {pairs});
  positions.fill([&] {
    return static_cast<int32_t>(h.pick<int64_t>({0, 1, h.between(0, 4096), 131071, 1 << 20}));
  });
  for (int64_t i = 0; i < pairs; ++i) {
    frequencies.host_at(i) = static_cast<float>(
        std::pow(h.pick({1e4, 5e5}), -static_cast<double>(i) / static_cast<double>(pairs)));
  }
  frequencies.upload();
  Rope op;
  op.layout = layout;
  op.scale = h.pick({1.0f, 1.0f, 1.2079f});
  op.inverse = h.chance(0.3);
  const bool with_k = h.chance(0.7);
  Rope law = op;
  law.positions = positions.host(), law.inverse_frequencies = frequencies.host();
  law.q = fused.host().narrow(1, 0, query);
  op.positions = positions.device(), op.inverse_frequencies = frequencies.device();
  op.q = fused.device().narrow(1, 0, query);
  if (with_k) law.k = fused.host().narrow(1, query, kv), op.k = fused.device().narrow(1, query, kv);
  h.chip().rope(op);
  positions.download(line, "positions", false);
  frequencies.download(line, "inverse_frequencies", false);
  fused.download(line, "q and k");
  const int64_t heads = query + 2 * kv;
  const std::vector<double> rotated =
      reference::exact_rope(law, fused.host());  // v's too, which is not looked at
  for (int64_t i = 0; i < fused.elements(); ++i) {
    const int64_t t = i / width / heads, head = i / width % heads, d = i % width;
    const bool moved = head < query + (with_k ? kv : 0);
    const double expected = moved ? rotated[static_cast<size_t>(i)] : fused.host_at(i);
    h.element(line, fused.result_at(i), expected, moved ? rope_bound(law, fused.host(), t, head, d) : 0,
              i / width, d);
  }
  if (tokens < 2) return;
  // The last token alone: the same bytes.
  const std::vector<float> before(
      fused.result().as<float>() + (tokens - 1) * fused.host().stride[0],
      fused.result().as<float>() + (tokens - 1) * fused.host().stride[0] + query * width);
  fused.upload();
  op.q = op.q.slice(tokens - 1, 1), op.positions = op.positions.slice(tokens - 1, 1);
  op.k = {};
  h.chip().rope(op);
  fused.download(line, "q and k");
  if (fused.host().stride[1] == width &&
      std::memcmp(before.data(), fused.result().as<float>() + (tokens - 1) * fused.host().stride[0],
                  before.size() * sizeof(float)) != 0) {
    h.fail(line, fmt::format("the last of {} tokens alone differs", tokens));
  }
}

}  // namespace

void conform_rope(Harness& h) {
  for (const Rope::Layout layout : {Rope::Layout::kHalf, Rope::Layout::kInterleaved}) {
    const size_t line = h.line("rope", layout == Rope::Layout::kHalf ? "half" : "interleaved");
    for (int i = 0; i < (h.options().quick ? 12 : 80); ++i)
      h.run_case(line, [&] { rope_case(h, line, layout); });
    h.run_case(line, [&] {
      if (!h.benches()) return;
      Guarded q(h, DType::kF32, {512, 16, 128}), k(h, DType::kF32, {512, 4, 128});
      Guarded positions(h, DType::kI32, {512}), frequencies(h, DType::kF32, {64});
      for (Guarded* tensor : {&q, &k}) tensor->fill([&] { return h.normal(); });
      positions.fill([&] { return static_cast<int32_t>(h.between(0, 4096)); });
      frequencies.fill([&] { return std::exp(-std::abs(h.normal())); });
      Rope op;
      op.layout = layout;
      op.q = q.device(), op.k = k.device(), op.positions = positions.device();
      op.inverse_frequencies = frequencies.device();
      h.bench(line, "T=512 H=16 G=4 D=128", op.bytes(), op.flops(), Harness::Peak::kF32,
              [&] { h.chip().rope(op); });
    });
  }
}

}  // namespace qiao::conformance
