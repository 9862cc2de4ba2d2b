// Part of the law (reference_class.h): products of activations and weights.
#include <cmath>

#include "backend/reference/exact.h"
#include "backend/reference/memory.h"
#include "backend/reference/reference_class.h"
#include "tensor/half.h"

namespace qiao::reference {

void round_activations(Compute compute, const float* x, int64_t count, double* out) {
  if (compute == Compute::kF32) {
    for (int64_t i = 0; i < count; ++i) out[i] = x[i];
  } else if (compute == Compute::kBF16) {
    for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_float(float_to_bf16(x[i]));
  } else if (compute == Compute::kF8) {
    for (int64_t block = 0; block < count; block += kF8Block) {
      const int64_t end = std::min(block + kF8Block, count);
      float largest = 0;
      for (int64_t i = block; i < end; ++i) largest = std::max(largest, std::abs(x[i]));
      const bool zero = largest < kQ8Smallest;
      const float scale = zero ? 0.0f : largest / kMostE4M3;
      const float inverse = zero ? 0.0f : kMostE4M3 / largest;
      for (int64_t i = block; i < end; ++i)
        out[i] =
            static_cast<double>(scale) * static_cast<double>(e4m3_to_float(float_to_e4m3(x[i] * inverse)));
    }
  } else {
    for (int64_t block = 0; block < count; block += kQ8Block) {
      float largest = 0;
      for (int64_t i = block; i < block + kQ8Block; ++i) largest = std::max(largest, std::abs(x[i]));
      const bool zero = largest < kQ8Smallest;
      const float scale = zero ? 0.0f : largest / 127.0f;
      const float inverse = zero ? 0.0f : 127.0f / largest;
      for (int64_t i = block; i < block + kQ8Block; ++i) {
        const float quant = std::nearbyint(x[i] * inverse);  // the default rounding: half to even
        out[i] = static_cast<double>(scale) * static_cast<double>(quant);
      }
    }
  }
}

double activate(Activation activation, double soft_cap, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGelu:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh: {
      const double inner = std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
      return 0.5 * x * (1.0 + std::tanh(inner));
    }
    case Activation::kSoftCap:
      return soft_cap * std::tanh(x / soft_cap);
  }
  return x;
}

double activation_slope(Activation activation, double x) {
  if (activation == Activation::kSilu) {
    const double s = 1.0 / (1.0 + std::exp(-x));
    return s + x * s * (1.0 - s);
  }
  if (activation == Activation::kGelu) {
    return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-0.5 * x * x) / std::sqrt(2.0 * M_PI);
  }
  const double root = std::sqrt(2.0 / M_PI), inner = root * (x + 0.044715 * x * x * x);
  const double sech = 1.0 / std::cosh(inner);  // 1 - tanh^2 is its square; beyond cosh's range 0
  return 0.5 * (1.0 + std::tanh(inner)) + 0.5 * x * sech * sech * root * (1.0 + 3 * 0.044715 * x * x);
}

Products exact_products(const Tensor& x, const Weight& weight, const Compute compute,
                        const std::vector<int64_t>& expert_of_row) {
  const auto& w = static_cast<const ReferenceWeight&>(weight);
  const int64_t tokens = x.shape[0], width = weight.columns(), rows = weight.rows();
  std::vector<double> rounded(static_cast<size_t>(tokens * width));
  Products result;
  result.x_sum.resize(static_cast<size_t>(tokens));
  for (int64_t t = 0; t < tokens; ++t) {
    double* row = rounded.data() + t * width;
    round_activations(compute, x.as<float>() + t * x.stride[0], width, row);
    for (int64_t k = 0; k < width; ++k) result.x_sum[static_cast<size_t>(t)] += std::abs(row[k]);
  }
  result.sum.resize(static_cast<size_t>(tokens * rows));
  result.magnitude.resize(result.sum.size());
  result.w_sum.resize(static_cast<size_t>(weight.experts() * rows));
  std::vector<Term> terms(static_cast<size_t>(width));
  for (int64_t expert = 0; expert < weight.experts(); ++expert) {
    for (int64_t n = 0; n < rows; ++n) {
      bool unpacked = false;
      for (int64_t t = 0; t < tokens; ++t) {
        if (expert_of_row[static_cast<size_t>(t)] != expert) continue;
        if (!unpacked) {
          w.row_terms(expert, n, terms.data());
          double& w_sum = result.w_sum[static_cast<size_t>(expert * rows + n)];
          for (const Term& term : terms) w_sum += std::abs(term.value());
          unpacked = true;
        }
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < width; ++k) {
          const double a = rounded[static_cast<size_t>(t * width + k)];
          const Term& term = terms[static_cast<size_t>(k)];
          if (compute == Compute::kQ8) {  // scale and minimum are multiplied apart, so w' is not rounded
            sum += a * (static_cast<double>(term.product) + static_cast<double>(term.minimum));
            magnitude += std::abs(a) * (std::abs(term.product) + std::abs(term.minimum));
          } else {
            sum += a * static_cast<double>(term.value());
            magnitude += std::abs(a * static_cast<double>(term.value()));
          }
        }
        result.sum[static_cast<size_t>(t * rows + n)] = sum;
        result.magnitude[static_cast<size_t>(t * rows + n)] = magnitude;
      }
    }
  }
  return result;
}

std::vector<double> exact_linear(const Linear& op, const Products& products) {
  const int64_t rows = op.weight->rows();
  std::vector<double> y(products.sum.size());
  for (int64_t t = 0; t < op.x.shape[0]; ++t) {
    for (int64_t n = 0; n < rows; ++n) {
      const auto i = static_cast<size_t>(t * rows + n);
      const double sum = products.sum[i] + (op.bias.present() ? op.bias.as<float>()[n] : 0.0f);
      y[i] = activate(op.activation, op.soft_cap, sum);
      if (op.residual.present()) y[i] += at(op.residual, t, n);
    }
  }
  return y;
}

std::vector<int64_t> experts_of_rows(const Tensor& counts) {
  std::vector<int64_t> experts;
  for (int64_t e = 0; e < counts.elements(); ++e) {
    experts.insert(experts.end(), static_cast<size_t>(int_at(counts, e)), e);
  }
  return experts;
}

namespace {

// dy as dx takes it: a row in kF8 by segments.
std::vector<double> round_rows(Compute compute, const Tensor& dy, const Weight& weight) {
  std::vector<double> rounded(static_cast<size_t>(dy.elements()));
  for (int64_t t = 0; t < dy.shape[0]; ++t) {
    for (const Weight::Segment& segment : weight.segments()) {
      round_activations(compute, &at(dy, t, segment.first_row), segment.rows,
                        rounded.data() + t * dy.shape[1] + segment.first_row);
    }
  }
  return rounded;
}

// An operand of dw, [tokens, width]: in kF8 by blocks of tokens from each expert's first on.
std::vector<double> round_columns(Compute compute, const Tensor& x,
                                  const std::vector<int64_t>& expert_of_row) {
  const int64_t tokens = x.shape[0], width = x.shape[1];
  std::vector<double> rounded(static_cast<size_t>(x.elements()));
  for (int64_t first = 0, end = 0; first < tokens; first = end) {
    while (end < tokens &&
           expert_of_row[static_cast<size_t>(end)] == expert_of_row[static_cast<size_t>(first)])
      ++end;
    std::vector<float> column(static_cast<size_t>(end - first));
    std::vector<double> out(column.size());
    for (int64_t k = 0; k < width; ++k) {
      for (int64_t t = first; t < end; ++t) column[static_cast<size_t>(t - first)] = at(x, t, k);
      round_activations(compute, column.data(), end - first, out.data());
      for (int64_t t = first; t < end; ++t)
        rounded[static_cast<size_t>(t * width + k)] = out[static_cast<size_t>(t - first)];
    }
  }
  return rounded;
}

// Both gradients but dbias, of any number of experts.
template <class Op>
LinearGradients exact_products_back(const Op& op, const std::vector<int64_t>& expert_of_row) {
  const auto& weight = static_cast<const ReferenceWeight&>(*op.weight);
  const int64_t tokens = op.dy.shape[0], rows = weight.rows(), columns = weight.columns();
  LinearGradients g{GradientSums(op.dx.elements()), GradientSums(op.dw.elements()), GradientSums()};
  for (int64_t i = 0; op.add_dx && i < op.dx.elements(); ++i)
    g.dx.begin(i, at(op.dx, i / columns, i % columns));
  for (int64_t i = 0; i < op.dw.elements(); ++i) g.dw.begin(i, op.dw.template as<float>()[i]);
  const bool has_dw = op.dw.present();
  const std::vector<double> along = round_rows(op.compute, op.dy, weight);
  const std::vector<double> dy = has_dw ? round_columns(op.compute, op.dy, expert_of_row) : along;
  const std::vector<double> x = has_dw ? round_columns(op.compute, op.x, expert_of_row) : along;
  std::vector<Term> row(static_cast<size_t>(columns));
  for (int64_t expert = 0; expert < weight.experts(); ++expert) {
    for (int64_t n = 0; n < rows; ++n) {
      weight.row_terms(expert, n, row.data());
      for (int64_t t = 0; t < tokens; ++t) {
        if (expert_of_row[static_cast<size_t>(t)] != expert) continue;
        const auto i = static_cast<size_t>(t * rows + n);
        for (int64_t k = 0; k < columns; ++k) {
          if (op.dx.present()) g.dx.add(t * columns + k, along[i], row[static_cast<size_t>(k)].value());
          if (has_dw)
            g.dw.add((expert * rows + n) * columns + k, dy[i], x[static_cast<size_t>(t * columns + k)]);
        }
      }
    }
  }
  return g;
}

}  // namespace

LinearGradients exact_linear_backward(const LinearBackward& op) {
  const int64_t tokens = op.dy.shape[0];
  LinearGradients g = exact_products_back(op, std::vector<int64_t>(static_cast<size_t>(tokens), 0));
  g.dbias = GradientSums(op.dbias.elements());
  for (int64_t n = 0; n < op.dbias.elements(); ++n) {
    g.dbias.begin(n, op.dbias.as<float>()[n]);
    for (int64_t t = 0; t < tokens; ++t) g.dbias.add(n, at(op.dy, t, n), 1);
  }
  return g;
}

LinearGradients exact_grouped_linear_backward(const GroupedLinearBackward& op) {
  return exact_products_back(op, experts_of_rows(op.counts));
}

void ReferenceBackend::do_grouped_linear_backward(const GroupedLinearBackward& op) {
  const LinearGradients g = exact_grouped_linear_backward(op);
  const int64_t columns = op.weight->columns();
  for (int64_t i = 0; i < op.dx.elements(); ++i) {
    at(op.dx, i / columns, i % columns) = static_cast<float>(g.dx.sum[static_cast<size_t>(i)]);
  }
  for (int64_t i = 0; i < op.dw.elements(); ++i) {
    op.dw.as<float>()[i] = static_cast<float>(g.dw.sum[static_cast<size_t>(i)]);
  }
}

void ReferenceBackend::do_linear_backward(const LinearBackward& op) {
  const LinearGradients g = exact_linear_backward(op);
  const int64_t columns = op.weight->columns();
  for (int64_t i = 0; i < op.dx.elements(); ++i) {
    at(op.dx, i / columns, i % columns) = static_cast<float>(g.dx.sum[static_cast<size_t>(i)]);
  }
  for (int64_t i = 0; i < op.dw.elements(); ++i) {
    op.dw.as<float>()[i] = static_cast<float>(g.dw.sum[static_cast<size_t>(i)]);
  }
  for (int64_t i = 0; i < op.dbias.elements(); ++i) {
    op.dbias.as<float>()[i] = static_cast<float>(g.dbias.sum[static_cast<size_t>(i)]);
  }
}

void ReferenceBackend::do_linear(const Linear& op) {
  const std::vector<int64_t> experts(static_cast<size_t>(op.x.shape[0]), 0);
  const std::vector<double> y = exact_linear(op, exact_products(op.x, *op.weight, op.compute, experts));
  for (int64_t t = 0; t < op.y.shape[0]; ++t) {
    for (int64_t n = 0; n < op.y.shape[1]; ++n) {
      at(op.y, t, n) = static_cast<float>(y[static_cast<size_t>(t * op.y.shape[1] + n)]);
    }
  }
}

void ReferenceBackend::do_grouped_linear(const GroupedLinear& op) {
  const Products products = exact_products(op.x, *op.weight, op.compute, experts_of_rows(op.counts));
  for (int64_t t = 0; t < op.y.shape[0]; ++t) {
    for (int64_t n = 0; n < op.y.shape[1]; ++n) {
      at(op.y, t, n) = static_cast<float>(products.sum[static_cast<size_t>(t * op.y.shape[1] + n)]);
    }
  }
}

}  // namespace qiao::reference
