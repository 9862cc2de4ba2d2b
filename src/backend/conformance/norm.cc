// add_rms_norm and its way back: rows and heads, with and without residual, gamma and aliasing; the same
// bytes in any batch.
#include "backend/ops/norm.h"

#include <cstring>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {

// Half of the sum of squares' roundings, the root, the division and two products (ops/norm.h).
double norm_share(int64_t width) {
  const int64_t longest = (width + 15) / 16;  // of the 16 partial sums
  return gamma(static_cast<double>(longest) + 12);
}

namespace {

struct NormShape {
  int64_t tokens, heads, width;  // heads 0: x is [T, C]
};

Guarded make(Harness& h, const NormShape& shape, int64_t gap) {
  if (shape.heads == 0) return Guarded(h, DType::kF32, {shape.tokens, shape.width}, gap);
  return Guarded(h, DType::kF32, {shape.tokens, shape.heads, shape.width}, gap);
}

void norm_case(Harness& h, size_t line, bool with_residual) {
  const NormShape shape{h.pick<int64_t>({0, 1, 2, 5, 17, 33}), h.pick<int64_t>({0, 0, 1, 5}),
                        h.pick<int64_t>({1, 2, 15, 16, 17, 31, 64, 128, 100, 576, 1537})};
  Guarded x = make(h, shape, h.between(0, 5)), residual = make(h, shape, h.between(0, 5));
  Guarded y = make(h, shape, h.between(0, 5)), residual_out = make(h, shape, h.between(0, 5));
  Guarded weights(h, DType::kF32, {shape.width});
  fill_activations(h, &x, 1e15f);
  fill_activations(h, &residual, 1e3f);
  weights.fill([&] { return h.normal(); });
  AddRmsNorm op;
  op.epsilon = h.pick({1e-6f, 1e-5f, 1e-12f, 1.0f});
  op.gamma_offset = h.pick({0.0f, 1.0f});
  const bool with_gamma = h.chance(0.8), with_out = with_residual && h.chance(0.8);
  const bool y_is_x = h.chance(0.3);
  const int64_t out_is = with_out ? h.between(0, 2) : 0;  // 1: the residual, 2: x where y is not
  AddRmsNorm law = op;
  law.x = x.host(), law.y = y.host();
  op.x = x.device(), op.y = y_is_x ? x.device() : y.device();
  if (with_residual) law.residual = residual.host(), op.residual = residual.device();
  if (with_gamma) law.gamma = weights.host(), op.gamma = weights.device();
  Guarded& out = out_is == 1 ? residual : out_is == 2 && !y_is_x ? x : residual_out;
  if (with_out) op.residual_out = out.device(), law.residual_out = residual_out.host();
  const reference::NormTerms terms = reference::exact_norm(law);
  std::vector<double> magnitudes;  // |x| + |residual|
  for (int64_t i = 0; i < x.elements(); ++i) {
    magnitudes.push_back(std::abs(x.host_at(i)) + (with_residual ? std::abs(residual.host_at(i)) : 0.0));
  }
  h.chip().add_rms_norm(op);
  x.download(line, "x", y_is_x || (with_out && &out == &x));
  if (with_residual) residual.download(line, "residual", with_out && &out == &residual);
  weights.download(line, "gamma", false);
  y.download(line, "y", !y_is_x);
  if (with_out) out.download(line, "residual_out");
  for (int64_t i = 0; i < x.elements(); ++i) {
    const auto at = static_cast<size_t>(i);
    const double exact = terms.y[at];
    // What the addition's rounding becomes on its way: u (|x| + |residual|) * |y / h|.
    const double carried = terms.h[at] == 0 ? 0 : kUnit * magnitudes[at] * std::abs(exact / terms.h[at]);
    const double bound = norm_share(shape.width) * std::abs(exact) + (with_residual ? carried : 0) + 0x1p-126;
    h.element(line, (y_is_x ? x : y).result_at(i), exact, bound, i / shape.width, i % shape.width);
    if (!with_out) continue;
    h.element(line, out.result_at(i), terms.h[at], kUnit * std::abs(terms.h[at]), i / shape.width,
              i % shape.width);
  }
}

void norm_invariance(Harness& h, size_t line, int64_t width) {
  Guarded x(h, DType::kF32, {256, width}), residual(h, DType::kF32, {256, width});
  Guarded all(h, DType::kF32, {256, width}), some(h, DType::kF32, {256, width}),
      weights(h, DType::kF32, {width});
  fill_activations(h, &x, 1e15f);
  for (Guarded* tensor : {&residual, &weights}) tensor->fill([&] { return h.normal(); });
  AddRmsNorm op;
  op.x = x.device(), op.residual = residual.device(), op.gamma = weights.device(), op.y = all.device();
  h.chip().add_rms_norm(op);
  all.download(line, "y");
  for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 1}, {7, 16}, {200, 17}}) {
    op.x = x.device().slice(begin, count), op.residual = residual.device().slice(begin, count);
    op.y = some.device().slice(begin, count);
    h.chip().add_rms_norm(op);
    some.download(line, "y");
    const auto bytes = static_cast<size_t>(count * width) * sizeof(float);
    if (std::memcmp(some.result().as<float>() + begin * width, all.result().as<float>() + begin * width,
                    bytes) != 0) {
      h.fail(line, fmt::format("rows {} to {} of width {} differ from the same among 256", begin,
                               begin + count, width));
    }
  }
}

void norm_backward_case(Harness& h, size_t line) {
  const NormShape shape{h.pick<int64_t>({0, 1, 2, 5, 17, 33, 600}), h.pick<int64_t>({0, 0, 1, 5}),
                        h.pick<int64_t>({1, 2, 15, 16, 17, 31, 64, 128, 100, 576})};
  const int64_t width = shape.width;
  Guarded dy = make(h, shape, h.between(0, 5)), more = make(h, shape, h.between(0, 5));
  Guarded hidden = make(h, shape, h.between(0, 5)), dh = make(h, shape, h.between(0, 5));
  Guarded weights(h, DType::kF32, {width}), dgamma(h, DType::kF32, {width});
  fill_activations(h, &hidden, 1e15f);
  fill_activations(h, &dy, 1e3f);
  for (Guarded* tensor : {&weights, &dgamma, &more}) tensor->fill([&] { return h.normal(); });
  AddRmsNormBackward op;
  op.epsilon = h.pick({1e-6f, 1e-5f, 1e-12f, 1.0f});
  op.gamma_offset = h.pick({0.0f, 1.0f});
  const bool with_more = h.chance(0.5), with_gamma = h.chance(0.8), with_dgamma = h.chance(0.7);
  const int64_t dh_is = h.between(0, with_more ? 2 : 1);  // 1: dy, 2: dresidual_out
  AddRmsNormBackward law = op;
  law.dy = dy.host(), law.h = hidden.host(), law.dh = dh.host();
  op.dy = dy.device(), op.h = hidden.device();
  Guarded& out = dh_is == 1 ? dy : dh_is == 2 ? more : dh;
  op.dh = out.device();
  if (with_more) law.dresidual_out = more.host(), op.dresidual_out = more.device();
  if (with_gamma) law.gamma = weights.host(), op.gamma = weights.device();
  if (with_dgamma) law.dgamma = dgamma.host(), op.dgamma = dgamma.device();
  const reference::NormGradients exact = reference::exact_norm_backward(law);
  h.chip().add_rms_norm_backward(op);
  hidden.download(line, "h", false);
  weights.download(line, "gamma", false);
  dy.download(line, "dy", &out == &dy);
  more.download(line, "dresidual_out", &out == &more);
  dh.download(line, "dh", &out == &dh);
  dgamma.download(line, "dgamma", with_dgamma);
  const int64_t steps = (width + 15) / 16;
  const auto m = static_cast<double>(steps);
  for (int64_t i = 0; i < dy.elements(); ++i) {
    const auto at = static_cast<size_t>(i);
    const double r = exact.factor[static_cast<size_t>(i / width)];
    const double bound = gamma(m + 16) * exact.direct[at] + gamma(3 * m + 40) * exact.through[at] +
                         (with_more ? 2 * kUnit * std::abs(more.host_at(i)) : 0) +
                         0x1p-125 * (1 + r) * (1 + r) * std::sqrt(static_cast<double>(width));
    h.element(line, out.result_at(i), exact.dh[at], bound, i / width, i % width);
  }
  const int64_t rows = dy.elements() / width;
  for (int64_t c = 0; with_dgamma && c < width; ++c) {
    const auto at = static_cast<size_t>(c);
    double flushed = static_cast<double>(rows);
    for (int64_t row = 0; row < rows; ++row) flushed += std::abs(dy.host_at(row * width + c));
    h.element(line, dgamma.result_at(c), exact.dgamma.sum[at],
              gamma(static_cast<double>(rows) + m + 16) * exact.dgamma.magnitude[at] + 0x1p-126 * flushed, 0,
              c);
  }
}

// dh of the same rows alone: the same bytes.
void norm_backward_invariance(Harness& h, size_t line, int64_t width) {
  Guarded dy(h, DType::kF32, {256, width}), hidden(h, DType::kF32, {256, width});
  Guarded all(h, DType::kF32, {256, width}), some(h, DType::kF32, {256, width});
  Guarded weights(h, DType::kF32, {width});
  fill_activations(h, &hidden, 1e15f);
  for (Guarded* tensor : {&dy, &weights}) tensor->fill([&] { return h.normal(); });
  AddRmsNormBackward op;
  op.dy = dy.device(), op.h = hidden.device(), op.gamma = weights.device(), op.dh = all.device();
  h.chip().add_rms_norm_backward(op);
  all.download(line, "dh");
  for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 1}, {7, 16}, {200, 17}}) {
    op.dy = dy.device().slice(begin, count), op.h = hidden.device().slice(begin, count);
    op.dh = some.device().slice(begin, count);
    h.chip().add_rms_norm_backward(op);
    some.download(line, "dh");
    const auto bytes = static_cast<size_t>(count * width) * sizeof(float);
    if (std::memcmp(some.result().as<float>() + begin * width, all.result().as<float>() + begin * width,
                    bytes) != 0) {
      h.fail(line, fmt::format("dh of rows {} to {} of width {} differs from the same among 256", begin,
                               begin + count, width));
    }
  }
}

}  // namespace

void conform_add_rms_norm(Harness& h) {
  for (const bool with_residual : {false, true}) {
    const size_t line = h.line("add_rms_norm", with_residual ? "F32 residual" : "F32");
    for (int i = 0; i < (h.options().quick ? 12 : 80); ++i)
      h.run_case(line, [&] { norm_case(h, line, with_residual); });
    for (const int64_t width : {1, 17, 576}) h.run_case(line, [&] { norm_invariance(h, line, width); });
    h.run_case(line, [&] {
      if (!h.benches()) return;
      Guarded x(h, DType::kF32, {512, 2048}), y(h, DType::kF32, {512, 2048}), weights(h, DType::kF32, {2048});
      Guarded residual(h, DType::kF32, {512, 2048});
      for (Guarded* tensor : {&x, &residual, &weights}) tensor->fill([&] { return h.normal(); });
      AddRmsNorm op;
      op.x = x.device(), op.gamma = weights.device(), op.y = y.device();
      if (with_residual) op.residual = op.residual_out = residual.device();
      h.bench(line, "T=512 C=2048", op.bytes(), op.flops(), Harness::Peak::kF32,
              [&] { h.chip().add_rms_norm(op); });
    });
  }
}

void conform_add_rms_norm_backward(Harness& h) {
  const size_t line = h.line("add_rms_norm_backward", "F32");
  for (int i = 0; i < (h.options().quick ? 12 : 80); ++i)
    h.run_case(line, [&] { norm_backward_case(h, line); });
  for (const int64_t width : {1, 17, 576})
    h.run_case(line, [&] { norm_backward_invariance(h, line, width); });
  h.run_case(line, [&] {
    if (!h.benches()) return;
    Guarded dy(h, DType::kF32, {512, 2048}), hidden(h, DType::kF32, {512, 2048});
    Guarded more(h, DType::kF32, {512, 2048}), weights(h, DType::kF32, {2048}),
        dgamma(h, DType::kF32, {2048});
    for (Guarded* tensor : {&dy, &hidden, &more, &weights, &dgamma}) tensor->fill([&] { return h.normal(); });
    AddRmsNormBackward op;
    op.dy = dy.device(), op.h = hidden.device(), op.gamma = weights.device(), op.dgamma = dgamma.device();
    op.dresidual_out = op.dh = more.device();
    h.bench(line, "T=512 C=2048", op.bytes(), op.flops(), Harness::Peak::kF32,
            [&] { h.chip().add_rms_norm_backward(op); });
  });
}

}  // namespace qiao::conformance
