// Part of the law (reference_class.h).
#include "backend/ops/layer_norm.h"

#include <cmath>

#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {

LayerNormTerms exact_layer_norm(const LayerNorm& op) {
  const int64_t rows = op.x.shape[0], width = op.x.shape[1];
  LayerNormTerms terms;
  terms.d.resize(static_cast<size_t>(rows * width));
  terms.y.resize(terms.d.size());
  for (int64_t r = 0; r < rows; ++r) {
    double* d = terms.d.data() + r * width;
    double sum = 0;
    for (int64_t c = 0; c < width; ++c) {
      d[c] = at(op.x, r, c);
      if (op.residual.present()) d[c] += at(op.residual, r, c);
      sum += d[c];
    }
    const double mean = sum / static_cast<double>(width);
    double squares = 0;
    for (int64_t c = 0; c < width; ++c) {
      d[c] -= mean;
      squares += d[c] * d[c];
    }
    const double root = std::sqrt(squares / static_cast<double>(width) + static_cast<double>(op.epsilon));
    for (int64_t c = 0; c < width; ++c) {
      const double beta = op.beta.present() ? at(op.beta, c) : 0.0f;
      terms.y[static_cast<size_t>(r * width + c)] = d[c] / root * static_cast<double>(at(op.gamma, c)) + beta;
    }
    terms.root.push_back(root);
  }
  return terms;
}

void ReferenceBackend::do_layer_norm(const LayerNorm& op) {
  const LayerNormTerms terms = exact_layer_norm(op);
  const int64_t width = op.x.shape[1];
  for (int64_t i = 0; i < op.x.elements(); ++i)
    at(op.y, i / width, i % width) = static_cast<float>(terms.y[static_cast<size_t>(i)]);
}

}  // namespace qiao::reference
