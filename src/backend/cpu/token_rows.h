// What the ops over known tokens share: the rows that carry a loss, side by side in the workspace, and the
// head's products with them.
#pragma once

#include <algorithm>
#include <cstring>
#include <new>

#include "backend/cpu/linear_backward.h"
#include "backend/cpu/log_sum_exp.h"
#include "backend/cpu/matmul.h"
#include "backend/ops/linear.h"

namespace qiao::cpu {

// A row that carries a loss, and what it has so far.
struct LossRow {
  int64_t row, label;
  LogSumExp sum;
  float label_z;

  // The next piece's logits over the temperature, of ids from `first` on.
  void add(const SampleKernels& kernels, const float* z, int64_t first, int64_t count) {
    sum.add(kernels, z, count);
    if (label >= first && label < first + count) label_z = z[label - first];
  }
};

// Where the workspace of such an op has what: [logits][rows of x][of dx, and its products' own, where the way
// back follows][the rows' states][the matmul's].
struct TokenPlan {
  int64_t rows;  // at once, at most
  int64_t x_at, dx_at, gradients_at, rows_at, matmul_at;
  size_t bytes;

  template <typename Op>
  TokenPlan(const Op& op, int64_t rows_at_once, int64_t logit_bytes, bool backward, int threads)
      : rows(rows_at_once) {
    const auto up = [](int64_t size) { return (size + 63) / 64 * 64; };
    const int64_t columns = op.x.shape[1];
    const int64_t own = up(rows * columns * static_cast<int64_t>(sizeof(float)));
    x_at = up(logit_bytes);
    dx_at = x_at + own;
    gradients_at = dx_at + (backward ? own : 0);
    rows_at = gradients_at;
    if (backward) {
      const int64_t width = std::min(op.weight->rows(), kVocabularyPiece);
      rows_at += up(static_cast<int64_t>(
          gradient_workspace_bytes(rows, width, columns, gradient_compute(op.compute), threads)));
    }
    matmul_at = rows_at + up(rows * static_cast<int64_t>(sizeof(LossRow)));
    bytes = static_cast<size_t>(matmul_at) + matmul_workspace_bytes(rows, columns, op.compute, threads);
  }
};

// The rows of op that carry a loss, plan.rows at a time.
template <typename Op>
class LossRows {
 public:
  LossRows(const Op& op, const TokenPlan& plan, ThreadPool& pool)
      : op_(op),
        plan_(plan),
        pool_(pool),
        weight_(static_cast<const CpuWeight&>(*op.weight)),
        workspace_(op.workspace.template as<std::byte>()),
        rows_(reinterpret_cast<LossRow*>(workspace_ + plan.rows_at)) {}

  // Takes the next rows for which carries(row), their x side by side; false where none is left.
  template <typename Carries>
  bool next(Carries carries) {
    count_ = 0;
    auto* to = reinterpret_cast<float*>(workspace_ + plan_.x_at);
    const int64_t columns = op_.x.shape[1];
    for (; from_ < op_.x.shape[0] && count_ < plan_.rows; ++from_) {
      const int64_t label = op_.labels.template as<int32_t>()[from_];
      if (label < 0 || !carries(from_)) continue;
      new (rows_ + count_) LossRow{from_, label, {}, 0.0f};
      std::memcpy(to + count_++ * columns, op_.x.template as<float>() + from_ * op_.x.stride[0],
                  static_cast<size_t>(columns) * sizeof(float));
    }
    return count_ > 0;
  }
  int64_t count() const { return count_; }
  LossRow& operator[](int64_t i) const { return rows_[i]; }
  const CpuWeight& weight() const { return weight_; }
  Tensor x() const { return matrix(plan_.x_at); }
  void clear_x(int64_t t) const {
    const int64_t columns = op_.x.shape[1];
    std::fill_n(x().template as<float>() + t * columns, columns, 0.0f);
  }
  Tensor dx() const { return matrix(plan_.dx_at); }
  float* logits() const { return reinterpret_cast<float*>(workspace_); }

  // The capped products of these rows with each piece of the vocabulary in turn, a row every `stride` floats:
  // those with ids from `first` on at to(first); then body(first, count). With `whole_pairs` a piece ends
  // where a pair of groups does.
  template <typename To, typename Body>
  void for_each_piece(bool whole_pairs, int64_t stride, To&& to, Body&& body) {
    const LinearKernels& kernels = linear_kernels(active_isa());
    Linear linear;
    linear.x = x();
    linear.weight = op_.weight;
    linear.compute = op_.compute;
    if (op_.soft_cap > 0) linear.activation = Activation::kSoftCap, linear.soft_cap = op_.soft_cap;
    std::byte* own = workspace_ + plan_.matmul_at;
    const Activations activations = prepare(linear.x, weight_, op_.compute, kernels, pool_, own);
    MatmulScratch* scratch = scratches(count_, op_.x.shape[1], op_.compute, own);
    for (int64_t first = 0, end = 0; first < weight_.rows(); first = end) {
      end = end_of_piece(first, whole_pairs);
      const int64_t pair = pair_of_row(weight_, first);
      linear.y = Tensor(to(first), DType::kF32, {count_, stride});
      multiply_pairs(linear, activations, {pair, pair_of_row(weight_, end - 1) + 1 - pair, first}, scratch,
                     kernels, pool_);
      body(first, end - first);
    }
  }
  int64_t end_of_piece(int64_t first, bool whole_pairs) const {
    const int64_t end = std::min(first + kVocabularyPiece, weight_.rows());
    return whole_pairs && end < weight_.rows() ? find_pair(weight_, pair_of_row(weight_, end)).column() : end;
  }

  // The gradients of these rows to where they belong.
  void give_dx() const {
    const int64_t columns = op_.x.shape[1];
    for (int64_t t = 0; t < count_; ++t) {
      std::copy_n(dx().template as<float>() + t * columns, columns,
                  op_.dx.template as<float>() + rows_[t].row * op_.dx.stride[0]);
    }
  }
  // The log-probabilities of these rows, whose sums are whole.
  void give_logprobs() const {
    for (int64_t t = 0; t < count_; ++t) {
      const double sum = rows_[t].sum.value();
      op_.log_sum_exp.template as<float>()[rows_[t].row] = static_cast<float>(sum);
      op_.logprob.template as<float>()[rows_[t].row] =
          static_cast<float>(static_cast<double>(rows_[t].label_z) - sum);
    }
  }

 private:
  Tensor matrix(int64_t at) const { return Tensor(workspace_ + at, DType::kF32, {count_, op_.x.shape[1]}); }

  const Op& op_;
  const TokenPlan& plan_;
  ThreadPool& pool_;
  const CpuWeight& weight_;
  std::byte* workspace_;
  LossRow* rows_;
  int64_t from_ = 0, count_ = 0;
};

inline void clear_rows(const Tensor& matrix) {
  for (int64_t t = 0; t < matrix.shape[0]; ++t)
    std::fill_n(matrix.as<float>() + t * matrix.stride[0], matrix.shape[1], 0.0f);
}

inline GradientContext head_gradients(Compute compute, ThreadPool& pool, std::byte* workspace) {
  return {linear_kernels(active_isa()), gradient_kernels(active_isa()), pool, workspace,
          gradient_compute(compute)};
}

}  // namespace qiao::cpu
