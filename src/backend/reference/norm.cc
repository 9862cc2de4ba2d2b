// Part of the law (reference_class.h).
#include "backend/ops/norm.h"

#include <cmath>

#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {
namespace {

// Calls body(flat row, pointer to the row's first element…) with [T, C] and [T, H, D] seen alike.
float* row_of(const Tensor& t, int64_t row) {
  if (t.rank == 2) return t.as<float>() + row * t.stride[0];
  return t.as<float>() + row / t.shape[1] * t.stride[0] + row % t.shape[1] * t.stride[1];
}

}  // namespace

NormTerms exact_norm(const AddRmsNorm& op) {
  const int64_t width = op.x.shape[static_cast<size_t>(op.x.rank - 1)];
  const int64_t rows = op.x.elements() / width;
  NormTerms terms;
  terms.y.resize(static_cast<size_t>(rows * width));
  terms.h.resize(terms.y.size());
  for (int64_t r = 0; r < rows; ++r) {
    double* h = terms.h.data() + r * width;
    double squares = 0;
    for (int64_t c = 0; c < width; ++c) {
      h[c] = row_of(op.x, r)[c];
      if (op.residual.present()) h[c] += row_of(op.residual, r)[c];
      squares += h[c] * h[c];
    }
    const double root = std::sqrt(squares / static_cast<double>(width) + static_cast<double>(op.epsilon));
    for (int64_t c = 0; c < width; ++c) {
      const double gamma = op.gamma.present() ? op.gamma.as<float>()[c] : 1.0f;
      terms.y[static_cast<size_t>(r * width + c)] =
          h[c] / root * (gamma + static_cast<double>(op.gamma_offset));
    }
  }
  return terms;
}

void ReferenceBackend::do_add_rms_norm(const AddRmsNorm& op) {
  if (op.x.elements() == 0) return;
  const NormTerms terms = exact_norm(op);
  const int64_t width = op.x.shape[static_cast<size_t>(op.x.rank - 1)];
  for (int64_t i = 0; i < op.x.elements(); ++i) {
    row_of(op.y, i / width)[i % width] = static_cast<float>(terms.y[static_cast<size_t>(i)]);
    if (op.residual_out.present()) {
      row_of(op.residual_out, i / width)[i % width] = static_cast<float>(terms.h[static_cast<size_t>(i)]);
    }
  }
}

NormGradients exact_norm_backward(const AddRmsNormBackward& op) {
  const int64_t width = op.dy.shape[static_cast<size_t>(op.dy.rank - 1)];
  const int64_t rows = op.dy.elements() / width;
  NormGradients g;
  for (std::vector<double>* each : {&g.dh, &g.direct, &g.through}) {
    each->resize(static_cast<size_t>(op.dy.elements()));
  }
  g.dgamma = GradientSums(op.dgamma.elements());
  for (int64_t c = 0; c < op.dgamma.elements(); ++c) g.dgamma.begin(c, op.dgamma.as<float>()[c]);
  for (int64_t row = 0; row < rows; ++row) {
    const float* h = row_of(op.h, row);
    const float* dy = row_of(op.dy, row);
    const auto gain = [&](int64_t c) {
      const double gamma = op.gamma.present() ? op.gamma.as<float>()[c] : 1.0f;
      return gamma + static_cast<double>(op.gamma_offset);
    };
    double squares = 0, dot = 0, magnitude = 0;
    for (int64_t c = 0; c < width; ++c) {
      const double product = gain(c) * dy[c] * h[c];
      squares += static_cast<double>(h[c]) * h[c];
      dot += product;
      magnitude += std::abs(product);
    }
    const double count = static_cast<double>(width);
    const double r = 1 / std::sqrt(squares / count + static_cast<double>(op.epsilon));
    g.factor.push_back(r);
    for (int64_t c = 0; c < width; ++c) {
      const auto i = static_cast<size_t>(row * width + c);
      g.direct[i] = std::abs(r * gain(c) * dy[c]);
      g.through[i] = r * r * r * std::abs(h[c]) / count * magnitude;
      g.dh[i] = r * (gain(c) * dy[c] - h[c] * r * r / count * dot);
      if (op.dresidual_out.present()) g.dh[i] += row_of(op.dresidual_out, row)[c];
      if (op.dgamma.present()) g.dgamma.add(c, dy[c], h[c] * r);
    }
  }
  return g;
}

void ReferenceBackend::do_add_rms_norm_backward(const AddRmsNormBackward& op) {
  const NormGradients g = exact_norm_backward(op);
  const int64_t width = op.dy.shape[static_cast<size_t>(op.dy.rank - 1)];
  for (int64_t i = 0; i < op.dy.elements(); ++i) {
    row_of(op.dh, i / width)[i % width] = static_cast<float>(g.dh[static_cast<size_t>(i)]);
  }
  for (int64_t c = 0; c < op.dgamma.elements(); ++c) {
    op.dgamma.as<float>()[c] = static_cast<float>(g.dgamma.sum[static_cast<size_t>(c)]);
  }
}

}  // namespace qiao::reference
