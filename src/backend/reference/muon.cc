// Part of the law (reference_class.h): Muon's step, and how far F32 may be from it (ops/muon.h).
#include "backend/ops/muon.h"

#include <algorithm>
#include <cmath>

#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {
namespace {

// Row-major, in float64.
struct Matrix {
  int64_t rows, columns;
  std::vector<double> values;
  Matrix(int64_t r, int64_t c) : rows(r), columns(c), values(static_cast<size_t>(r * c)) {}
  double& at(int64_t i, int64_t j) { return values[static_cast<size_t>(i * columns + j)]; }
  double at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * columns + j)]; }
};

Matrix product(const Matrix& a, const Matrix& b) {
  Matrix made(a.rows, b.columns);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t k = 0; k < a.columns; ++k)
      for (int64_t j = 0; j < b.columns; ++j) made.at(i, j) += a.at(i, k) * b.at(k, j);
  return made;
}

Matrix transposed(const Matrix& a) {
  Matrix made(a.columns, a.rows);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < a.columns; ++j) made.at(j, i) = a.at(i, j);
  return made;
}

Matrix absolute(Matrix a) {
  for (double& value : a.values) value = std::abs(value);
  return a;
}

double norm(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

double roundings(double m) { return m * 0x1p-24 / (1 - m * 0x1p-24); }

// The largest |f| and |f'| on [0, s] of f(x) = a x + b x^3 + c x^5, at their ends and where they turn.
struct Polynomial {
  double value, slope;
};
Polynomial largest_up_to(double s) {
  constexpr double a = Muon::kA, b = Muon::kB, c = Muon::kC;
  const auto value = [](double x) { return std::abs(x * (a + x * x * (b + x * x * c))); };
  const auto slope = [](double x) { return std::abs(a + x * x * (3 * b + x * x * 5 * c)); };
  Polynomial most{value(s), std::max(slope(0), slope(s))};
  const double root = std::sqrt(9 * b * b - 20 * a * c);
  for (const double square : {(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)})
    if (square < s * s) most.value = std::max(most.value, value(std::sqrt(square)));
  if (const double square = -3 * b / (10 * c); square < s * s)
    most.slope = std::max(most.slope, slope(std::sqrt(square)));
  return most;
}

}  // namespace

MuonTerms exact_muon(const Muon& op) {
  constexpr double a = Muon::kA, b = Muon::kB, c = Muon::kC, kLeast = 0x1p-124;
  const int64_t rows = op.parameters.shape[0], columns = op.parameters.shape[1], count = rows * columns;
  MuonTerms terms;
  Matrix x(rows, columns);
  std::vector<double> errors;
  for (int64_t i = 0; i < count; ++i) {
    const double p = op.parameters.as<float>()[i], m = op.momentum.as<float>()[i];
    const double g = op.gradient_scale * static_cast<double>(op.gradients.as<float>()[i]);
    const double share = (1 - op.beta) * g, moved = op.beta * m + share;
    const double size = std::abs(op.beta * m) + std::abs(share);
    terms.momentum.push_back(moved);
    terms.momentum_size.push_back(size);
    terms.decayed.push_back((1 - op.learning_rate * op.weight_decay) * p);
    x.values[static_cast<size_t>(i)] = op.nesterov ? share + op.beta * moved : moved;
    errors.push_back((op.nesterov ? roundings(8) * (std::abs(share) + op.beta * size) : roundings(5) * size) +
                     kLeast);
  }
  const double length = std::max(norm(x.values), Muon::kLeastNorm);
  for (double& value : x.values) value /= length;
  double error = 2 * norm(errors) / length + roundings(4), most = 1;
  const bool is_tall = rows > columns;
  if (is_tall) x = transposed(x);
  const double depth = roundings(static_cast<double>(x.columns) + 2);
  const double least = roundings(static_cast<double>(x.rows) + 4);
  for (int step = 0; step < Muon::kSteps; ++step) {
    const Matrix across = transposed(x), square = product(x, across), fourth = product(square, square);
    const double t = norm(x.values) + error, s = most + error;
    const double size = norm(square.values);
    const double of_square =
        norm(product(absolute(x), absolute(across)).values) + 2 * t * error + error * error;
    const double d_square = depth * of_square, off = d_square + 2 * s * error;
    const double of_fourth =
        norm(product(absolute(square), absolute(square)).values) + 2 * size * off + off * off;
    const double d_sum = std::abs(b) * d_square + std::abs(c) * (2 * s * s * d_square + d_square * d_square) +
                         least * (std::abs(b) * (size + off) + std::abs(c) * of_fourth);
    const double sum = std::abs(b) * (size + off) + std::abs(c) * (size + off) * (size + off) + d_sum;
    Matrix factor(x.rows, x.rows);
    for (size_t i = 0; i < factor.values.size(); ++i)
      factor.values[i] = b * square.values[i] + c * fourth.values[i];
    const Matrix added = product(factor, x);
    for (size_t i = 0; i < x.values.size(); ++i) x.values[i] = a * x.values[i] + added.values[i];
    const Polynomial largest = largest_up_to(s);
    error =
        largest.slope * error + s * d_sum + least * (a * t + sum * t) + 0x1p-120 * static_cast<double>(count);
    most = largest.value;
  }
  if (is_tall) x = transposed(x);
  terms.orthogonal = x.values;
  terms.orthogonal_error = error;
  for (size_t i = 0; i < terms.decayed.size(); ++i)
    terms.parameters.push_back(terms.decayed[i] - op.step_size() * terms.orthogonal[i]);
  return terms;
}

void ReferenceBackend::do_muon(const Muon& op) {
  const MuonTerms terms = exact_muon(op);
  for (size_t i = 0; i < terms.parameters.size(); ++i) {
    op.parameters.as<float>()[i] = static_cast<float>(terms.parameters[i]);
    op.momentum.as<float>()[i] = static_cast<float>(terms.momentum[i]);
  }
}

}  // namespace qiao::reference
