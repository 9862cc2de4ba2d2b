// layer_norm: with and without residual, beta and aliasing; rows that rounding drowns; the same bytes in any
// batch.
#include "backend/ops/layer_norm.h"

#include <cstring>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

// The contract's bound (ops/layer_norm.h) for one row: |x| + |residual|, d, r, gamma and beta to bounds.
class LayerNormBound {
 public:
  LayerNormBound(const std::vector<double>& magnitudes, const double* d, double root)
      : d_(d), root_(root), magnitudes_(magnitudes) {
    const auto width = static_cast<double>(magnitudes.size());
    gamma_m_ = gamma(std::ceil(width / 16) + 12);
    for (const double magnitude : magnitudes) mean_ += magnitude / width;
    double squares = 0;
    for (size_t c = 0; c < magnitudes.size(); ++c) squares += error(c) * error(c) / width;
    const double rms = std::sqrt(squares);
    root_error_ = rms + gamma_m_ * (root + rms);
    drowned_ = (1 + gamma_m_) * std::sqrt(width);
  }
  double at(size_t c, double weight, double beta, double y) const {
    const double scaled = std::abs(d_[c]) / root_;
    const double normalised =
        root_error_ < root_
            ? std::min((error(c) + scaled * root_error_) / (root_ - root_error_), scaled + drowned_)
            : scaled + drowned_;
    const double g = std::abs(weight);
    return g * (normalised + gamma(4) * (scaled + normalised)) +
           kUnit * (std::abs(y) + g * normalised + std::abs(beta)) + 0x1p-126 * (1 + g);
  }

 private:
  double error(size_t c) const { return gamma(4) * magnitudes_[c] + gamma_m_ * mean_; }
  const double* d_;
  double root_;
  const std::vector<double>& magnitudes_;
  double gamma_m_ = 0, mean_ = 0, root_error_ = 0, drowned_ = 0;
};

void layer_norm_case(Harness& h, size_t line, bool with_residual) {
  const int64_t tokens = h.pick<int64_t>({0, 1, 2, 5, 17, 33});
  const int64_t width = h.pick<int64_t>({1, 2, 15, 16, 17, 31, 64, 128, 384, 100, 1537});
  Guarded x(h, DType::kF32, {tokens, width}, h.between(0, 5));
  Guarded residual(h, DType::kF32, {tokens, width}, h.between(0, 5));
  Guarded y(h, DType::kF32, {tokens, width}, h.between(0, 5));
  Guarded weights(h, DType::kF32, {width}), beta(h, DType::kF32, {width});
  fill_activations(h, &x, 1e15f);
  fill_activations(h, &residual, 1e3f);
  if (h.chance(0.3)) {  // a large common offset: what a one-pass variance gets wrong
    for (int64_t i = 0; i < x.elements(); ++i) x.host_at(i) += 1000.0f;
    x.upload();
  }
  weights.fill([&] { return h.normal(); });
  beta.fill([&] { return h.normal(); });
  LayerNorm op;
  op.epsilon = h.pick({1e-5f, 1e-12f, 1.0f});
  const bool with_beta = h.chance(0.8);
  const int64_t out_is = h.between(0, with_residual ? 2 : 1);  // 0: y, 1: x, 2: the residual
  Guarded& out = out_is == 1 ? x : out_is == 2 ? residual : y;
  LayerNorm law = op;
  law.x = x.host(), law.gamma = weights.host(), law.y = y.host();
  op.x = x.device(), op.gamma = weights.device(), op.y = out.device();
  if (with_residual) law.residual = residual.host(), op.residual = residual.device();
  if (with_beta) law.beta = beta.host(), op.beta = beta.device();
  const reference::LayerNormTerms terms = reference::exact_layer_norm(law);
  h.chip().layer_norm(op);
  x.download(line, "x", out_is == 1);
  residual.download(line, "residual", out_is == 2);
  weights.download(line, "gamma", false);
  beta.download(line, "beta", false);
  y.download(line, "y", out_is == 0);
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<double> magnitudes;
    for (int64_t i = t * width; i < (t + 1) * width; ++i) {
      const double added = with_residual ? std::abs(residual.host_at(i)) : 0.0f;
      magnitudes.push_back(std::abs(static_cast<double>(x.host_at(i))) + added);
    }
    const LayerNormBound bound(magnitudes, terms.d.data() + t * width, terms.root[static_cast<size_t>(t)]);
    for (int64_t c = 0; c < width; ++c) {
      const double exact = terms.y[static_cast<size_t>(t * width + c)];
      h.element(
          line, out.result_at(t * width + c), exact,
          bound.at(static_cast<size_t>(c), weights.host_at(c), with_beta ? beta.host_at(c) : 0.0f, exact), t,
          c);
    }
  }
}

void layer_norm_invariance(Harness& h, size_t line, int64_t width) {
  Guarded x(h, DType::kF32, {256, width}), residual(h, DType::kF32, {256, width});
  Guarded all(h, DType::kF32, {256, width}), some(h, DType::kF32, {256, width});
  Guarded weights(h, DType::kF32, {width}), beta(h, DType::kF32, {width});
  fill_activations(h, &x, 1e15f);
  for (Guarded* tensor : {&residual, &weights, &beta}) tensor->fill([&] { return h.normal(); });
  LayerNorm op;
  op.x = x.device(), op.residual = residual.device(), op.y = all.device();
  op.gamma = weights.device(), op.beta = beta.device();
  h.chip().layer_norm(op);
  all.download(line, "y");
  for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 1}, {7, 16}, {200, 17}}) {
    op.x = x.device().slice(begin, count), op.residual = residual.device().slice(begin, count);
    op.y = some.device().slice(begin, count);
    h.chip().layer_norm(op);
    some.download(line, "y");
    const auto bytes = static_cast<size_t>(count * width) * sizeof(float);
    if (std::memcmp(some.result().as<float>() + begin * width, all.result().as<float>() + begin * width,
                    bytes) != 0) {
      h.fail(line, fmt::format("rows {} to {} of width {} differ from the same among 256", begin,
                               begin + count, width));
    }
  }
}

}  // namespace

void conform_layer_norm(Harness& h) {
  for (const bool with_residual : {false, true}) {
    const size_t line = h.line("layer_norm", with_residual ? "F32 residual" : "F32");
    for (int i = 0; i < (h.options().quick ? 12 : 80); ++i)
      h.run_case(line, [&] { layer_norm_case(h, line, with_residual); });
    for (const int64_t width : {17, 384}) h.run_case(line, [&] { layer_norm_invariance(h, line, width); });
    h.run_case(line, [&] {
      if (!h.benches()) return;
      Guarded x(h, DType::kF32, {512, 768}), y(h, DType::kF32, {512, 768}),
          residual(h, DType::kF32, {512, 768});
      Guarded weights(h, DType::kF32, {768});
      for (Guarded* tensor : {&x, &residual, &weights}) tensor->fill([&] { return h.normal(); });
      LayerNorm op;
      op.x = x.device(), op.gamma = op.beta = weights.device(), op.y = y.device();
      if (with_residual) op.residual = residual.device();
      h.bench(line, "T=512 C=768", op.bytes(), op.flops(), Harness::Peak::kF32,
              [&] { h.chip().layer_norm(op); });
    });
  }
}

}  // namespace qiao::conformance
