// gated_activation and its way back: each kind, from the tails of exp to subnormals.
#include "backend/ops/gated_activation.h"

#include <bit>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

void gated_case(Harness& h, size_t line, Activation activation) {
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 17, 33}),
                width = h.pick<int64_t>({1, 7, 16, 33, 100, 576});
  Guarded x(h, DType::kF32, {tokens, 2 * width}, h.between(0, 5)),
      y(h, DType::kF32, {tokens, width}, h.between(0, 5));
  x.fill([&] {
    return h.pick(
        {h.normal(), h.normal(), 10 * h.normal(), 100 * h.normal(), 0.0f, 1e-40f, -88.5f, 1e15f, -1e15f});
  });
  GatedActivation op{x.device(), activation, y.device()};
  h.chip().gated_activation(op);
  x.download(line, "x", false);
  y.download(line, "y");
  const GatedActivation law{x.host(), activation, y.host()};
  const std::vector<double> exact = reference::exact_gated_activation(law);
  for (int64_t i = 0; i < y.elements(); ++i) {
    const int64_t t = i / width, f = i % width;
    const double product = std::abs(static_cast<double>(reference::at(law.x, t, f))) *
                           std::abs(static_cast<double>(reference::at(law.x, t, width + f)));
    const double expected = exact[static_cast<size_t>(i)];
    // A flushed activation loses 2^-126, times up.
    const double flushed = 0x1p-126 * (1 + std::abs(static_cast<double>(reference::at(law.x, t, width + f))));
    h.element(line, y.result_at(i), expected, 16 * kUnit * (product + std::abs(expected)) + flushed, t, f);
  }
  if (tokens < 2) return;
  Guarded one(h, DType::kF32, {1, width});
  op.x = x.device().slice(tokens - 1, 1), op.y = one.device();
  h.chip().gated_activation(op);
  one.download(line, "y");
  for (int64_t f = 0; f < width; ++f) {
    const float a = one.result_at(f), b = y.result_at((tokens - 1) * width + f);
    if (std::bit_cast<uint32_t>(a) != std::bit_cast<uint32_t>(b)) {
      h.fail(line, fmt::format("the last of {} tokens alone differs", tokens));
      return;
    }
  }
}

void gated_backward_case(Harness& h, size_t line, Activation activation) {
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 17, 33}),
                width = h.pick<int64_t>({1, 7, 16, 33, 100, 576});
  Guarded x(h, DType::kF32, {tokens, 2 * width}, h.between(0, 5)),
      dy(h, DType::kF32, {tokens, width}, h.between(0, 5)),
      dx(h, DType::kF32, {tokens, 2 * width}, h.between(0, 5));
  x.fill([&] {
    return h.pick({h.normal(), h.normal(), 3 * h.normal(), 10 * h.normal(), 100 * h.normal(), 0.0f, 1e-40f,
                   -88.5f, 1e15f, -1e15f});
  });
  fill_activations(h, &dy);
  const bool in_place = h.chance(0.3);
  Guarded& out = in_place ? x : dx;
  const std::vector<double> exact =
      reference::exact_gated_activation_backward({x.host(), activation, dy.host(), dx.host()});
  GatedActivationBackward op{x.device(), activation, dy.device(), out.device()};
  h.chip().gated_activation_backward(op);
  x.download(line, "x", in_place);
  dy.download(line, "dy", false);
  dx.download(line, "dx", !in_place);
  for (int64_t i = 0; i < x.elements(); ++i) {
    const int64_t t = i / (2 * width), f = i % (2 * width);
    const double gate = x.host_at(2 * t * width + f % width),
                 up = x.host_at(2 * t * width + width + f % width);
    const double d = std::abs(dy.host_at(t * width + f % width));
    const double flushed = 0x1p-126 * (1 + d) * (1 + std::abs(gate) + std::abs(up));
    const double bound =
        f < width
            ? 24 * kUnit * d * std::abs(up) * (std::abs(reference::activation_slope(activation, gate)) + 1)
            : 16 * kUnit * d * (std::abs(gate) + std::abs(reference::activate(activation, 0, gate)));
    h.element(line, out.result_at(i), exact[static_cast<size_t>(i)], bound + flushed, t, f);
  }
  if (tokens < 2 || in_place) return;
  Guarded one(h, DType::kF32, {1, 2 * width});
  op.x = x.device().slice(tokens - 1, 1), op.dy = dy.device().slice(tokens - 1, 1), op.dx = one.device();
  h.chip().gated_activation_backward(op);
  one.download(line, "dx");
  for (int64_t f = 0; f < 2 * width; ++f) {
    const float a = one.result_at(f), b = dx.result_at((tokens - 1) * 2 * width + f);
    if (std::bit_cast<uint32_t>(a) != std::bit_cast<uint32_t>(b)) {
      h.fail(line, fmt::format("the last of {} tokens alone differs", tokens));
      return;
    }
  }
}

constexpr std::pair<Activation, std::string_view> kGatedKinds[] = {
    {Activation::kSilu, "silu"}, {Activation::kGelu, "gelu"}, {Activation::kGeluTanh, "gelu tanh"}};

}  // namespace

void conform_gated_activation(Harness& h) {
  for (const auto& [activation, name] : kGatedKinds) {
    const size_t line = h.line("gated_activation", name);
    for (int i = 0; i < (h.options().quick ? 8 : 40); ++i) {
      h.run_case(line, [&, kind = activation] { gated_case(h, line, kind); });
    }
    h.run_case(line, [&, kind = activation] {
      if (!h.benches()) return;
      Guarded x(h, DType::kF32, {256, 16384}), y(h, DType::kF32, {256, 8192});
      x.fill([&] { return h.normal(); });
      const GatedActivation op{x.device(), kind, y.device()};
      h.bench(line, "T=256 F=8192", op.bytes(), op.flops(), Harness::Peak::kF32,
              [&] { h.chip().gated_activation(op); });
    });
  }
}

void conform_gated_activation_backward(Harness& h) {
  for (const auto& [activation, name] : kGatedKinds) {
    const size_t line = h.line("gated_activation_backward", name);
    for (int i = 0; i < (h.options().quick ? 8 : 40); ++i) {
      h.run_case(line, [&, kind = activation] { gated_backward_case(h, line, kind); });
    }
    h.run_case(line, [&, kind = activation] {
      if (!h.benches()) return;
      Guarded x(h, DType::kF32, {256, 16384}), dy(h, DType::kF32, {256, 8192}),
          dx(h, DType::kF32, {256, 16384});
      for (Guarded* tensor : {&x, &dy}) tensor->fill([&] { return h.normal(); });
      const GatedActivationBackward op{x.device(), kind, dy.device(), dx.device()};
      h.bench(line, "T=256 F=8192", op.bytes(), op.flops(), Harness::Peak::kF32,
              [&] { h.chip().gated_activation_backward(op); });
    });
  }
}

}  // namespace qiao::conformance
