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

}  // namespace qiao::reference
