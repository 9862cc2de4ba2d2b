// Plan: five times three products of the way back of linear (linear_backward.cc), which are the limit; X and
// its transpose both lie row by row, so that each product is a sum over rows: A = sum of y_t^T y_t over the
// rows y of X^T, A A and (b A + c A A) X likewise, A being symmetric to the bit. What is done element by
// element passes over memory once, in plain loops.
#include "backend/ops/muon.h"

#include <algorithm>
#include <cmath>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/linear_backward.h"
#include "backend/cpu/optimizer_kernels.h"

namespace qiao::cpu {
namespace {

constexpr int64_t kLine = 16;  // floats of a cache line

struct MuonShape {
  int64_t least, most;  // of N and K
  explicit MuonShape(const Muon& op)
      : least(std::min(op.parameters.shape[0], op.parameters.shape[1])),
        most(std::max(op.parameters.shape[0], op.parameters.shape[1])) {}
  int64_t matrix() const { return (least * most + kLine - 1) / kLine * kLine; }
  int64_t square() const { return (least * least + kLine - 1) / kLine * kLine; }
  size_t floats() const { return static_cast<size_t>(3 * matrix() + 2 * square()); }
};

// to[j, i] = from[i, j] for from [rows, columns], a tile at a time.
void transpose(const float* from, int64_t rows, int64_t columns, float* to, ThreadPool& pool) {
  constexpr int64_t kTile = 16;
  pool.parallel_for((columns + kTile - 1) / kTile, row_grain(rows * kTile),
                    [&](int64_t begin, int64_t end, int) {
                      for (int64_t i = 0; i < rows; i += kTile) {
                        for (int64_t j = begin * kTile; j < std::min(end * kTile, columns); ++j) {
                          for (int64_t k = i; k < std::min(i + kTile, rows); ++k)
                            to[j * rows + k] = from[k * columns + j];
                        }
                      }
                    });
}

}  // namespace

size_t CpuBackend::workspace_bytes(const Muon& op) const {
  const MuonShape shape(op);
  return shape.floats() * sizeof(float) +
         gradient_workspace_bytes(shape.most, shape.least, shape.most, Compute::kF32, pool_.size());
}

void CpuBackend::do_muon(const Muon& op) {
  const MuonShape shape(op);
  const int64_t rows = shape.least, columns = shape.most, count = rows * columns;
  const bool is_tall = op.parameters.shape[0] > op.parameters.shape[1];
  float* x = op.workspace.as<float>();  // X [rows, columns]
  float* next = x + shape.matrix();
  float* y = next + shape.matrix();  // X^T
  float* square = y + shape.matrix();
  float* factor = square + shape.square();
  const auto rounded = [](double value) { return static_cast<float>(value); };
  const auto each = [&](int64_t elements, auto body) {
    pool_.parallel_for(elements, row_grain(1), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) body(i);
    });
  };

  float* update = is_tall ? y : x;
  const float scale = rounded(op.gradient_scale), beta = rounded(op.beta), rest = rounded(1 - op.beta);
  const float* gradients = op.gradients.as<float>();
  float* momentum = op.momentum.as<float>();
  each(count, [&](int64_t i) {
    const float share = rest * (scale * gradients[i]);
    momentum[i] = beta * momentum[i] + share;
    update[i] = op.nesterov ? share + beta * momentum[i] : momentum[i];
  });
  double sum = 0;
  do_sum_of_squares({Tensor(update, DType::kF32, {count}), Tensor(&sum, DType::kF64, {1})});
  const float inverse = rounded(1 / std::max(std::sqrt(sum), Muon::kLeastNorm));
  each(count, [&](int64_t i) { update[i] *= inverse; });
  if (is_tall) {
    transpose(y, columns, rows, x, pool_);
  } else {
    transpose(x, rows, columns, y, pool_);
  }

  const GradientContext context{linear_kernels(active_isa()), gradient_kernels(active_isa()), pool_,
                                op.workspace.as<std::byte>() + shape.floats() * sizeof(float)};
  const auto matrix = [](float* at, int64_t r, int64_t c) { return Tensor(at, DType::kF32, {r, c}); };
  const float a = rounded(Muon::kA), b = rounded(Muon::kB), c = rounded(Muon::kC);
  for (int step = 0; step < Muon::kSteps; ++step) {
    each(rows * rows, [&](int64_t i) { square[i] = factor[i] = 0; });
    weight_gradient(matrix(y, columns, rows), matrix(y, columns, rows), square, context);
    weight_gradient(matrix(square, rows, rows), matrix(square, rows, rows), factor, context);
    each(rows * rows, [&](int64_t i) { factor[i] = b * square[i] + c * factor[i]; });
    each(count, [&](int64_t i) { next[i] = a * x[i]; });
    weight_gradient(matrix(factor, rows, rows), matrix(x, rows, columns), next, context);
    std::swap(x, next);
    transpose(x, rows, columns, y, pool_);
  }

  const float* orthogonal = is_tall ? y : x;
  const float decay = rounded(1 - op.learning_rate * op.weight_decay), size = rounded(op.step_size());
  float* parameters = op.parameters.as<float>();
  each(count, [&](int64_t i) { parameters[i] = decay * parameters[i] - size * orthogonal[i]; });
}

}  // namespace qiao::cpu
