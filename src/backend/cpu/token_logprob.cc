// Log-probabilities of known tokens and their way back. Plan: for some rows at a time, a piece of the
// vocabulary after the other: linear's products into the workspace, then a pass over each row while it is in
// a cache. The products are the limit; the weight is streamed once for each kRowsAtOnce rows.
#include <algorithm>
#include <cstring>
#include <new>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/linear_backward.h"
#include "backend/cpu/log_sum_exp.h"
#include "backend/cpu/simd_generic.h"
#include "backend/cpu/token_logprob_inl.h"
#include "base/error.h"

namespace qiao::cpu {

const TokenLogprobKernels kTokenLogprobGeneric = {TokenLogprobKernel<generic::Simd>::gradients};

namespace {

constexpr int64_t kRowsAtOnce = 1024;
// A pair of groups that a piece begins or ends inside is written whole: room for it on both sides.
constexpr int64_t kPairColumns = kPair * kGroupRows;
constexpr int64_t kPieceStride = kVocabularyPiece + 2 * kPairColumns;

// A row that carries a loss, and what it has so far.
struct LossRow {
  int64_t row, label;
  LogSumExp sum;
  float label_z;
};

// The workspace is [logits of a piece][rows of x that carry a loss][what follows, of the backward pass: rows
// of dx, and its products' own][the rows' states][the matmul's].
struct LogprobPlan {
  int64_t x_at, dx_at, gradients_at, rows_at, matmul_at;
  size_t bytes;

  template <typename Op>
  LogprobPlan(const Op& op, bool backward, int threads) {
    const auto up = [](int64_t size) { return (size + 63) / 64 * 64; };
    const int64_t rows = std::min(op.x.shape[0], kRowsAtOnce), columns = op.x.shape[1];
    const int64_t row_bytes = up(rows * columns * static_cast<int64_t>(sizeof(float)));
    x_at = rows * kPieceStride * static_cast<int64_t>(sizeof(float));
    dx_at = x_at + row_bytes;
    gradients_at = dx_at + (backward ? row_bytes : 0);
    rows_at = gradients_at;
    if (backward) {
      const int64_t width = std::min(op.weight->rows(), kVocabularyPiece);
      rows_at += up(static_cast<int64_t>(gradient_workspace_bytes(rows, width, columns, threads)));
    }
    matmul_at = rows_at + up(rows * static_cast<int64_t>(sizeof(LossRow)));
    bytes = static_cast<size_t>(matmul_at) + matmul_workspace_bytes(rows, columns, op.compute, threads);
  }
};

// The rows of op that carry a loss, kRowsAtOnce at a time.
template <typename Op>
class LossRows {
 public:
  LossRows(const Op& op, const LogprobPlan& plan, ThreadPool& pool)
      : op_(op),
        plan_(plan),
        pool_(pool),
        workspace_(op.workspace.template as<std::byte>()),
        rows_(reinterpret_cast<LossRow*>(workspace_ + plan.rows_at)) {}

  // Takes the next rows for which carries(row), their x side by side; false where none is left.
  template <typename Carries>
  bool next(Carries carries) {
    count_ = 0;
    auto* to = reinterpret_cast<float*>(workspace_ + plan_.x_at);
    const int64_t columns = op_.x.shape[1];
    for (; from_ < op_.x.shape[0] && count_ < kRowsAtOnce; ++from_) {
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
  Tensor x() const { return matrix(plan_.x_at); }
  Tensor dx() const { return matrix(plan_.dx_at); }

  // The capped products of these rows with each piece of the vocabulary in turn: body(first id, count,
  // logits), a row every kPieceStride. With `whole_pairs` a piece ends where a pair of groups does.
  template <typename Body>
  void for_each_piece(bool whole_pairs, Body&& body) {
    const auto& weight = static_cast<const CpuWeight&>(*op_.weight);
    const LinearKernels& kernels = linear_kernels(active_isa());
    auto* logits = reinterpret_cast<float*>(workspace_) + kPairColumns;
    Linear linear;
    linear.x = x();
    linear.weight = op_.weight;
    linear.compute = op_.compute;
    if (op_.soft_cap > 0) linear.activation = Activation::kSoftCap, linear.soft_cap = op_.soft_cap;
    linear.y = Tensor(logits, DType::kF32, {count_, kPieceStride});
    std::byte* own = workspace_ + plan_.matmul_at;
    const Activations activations = prepare(linear.x, weight, op_.compute, kernels, pool_, own);
    MatmulScratch* scratch = scratches(count_, op_.x.shape[1], op_.compute, own);
    for (int64_t first = 0, end = 0; first < weight.rows(); first = end) {
      end = std::min(first + kVocabularyPiece, weight.rows());
      if (whole_pairs && end < weight.rows()) end = find_pair(weight, pair_of_row(weight, end)).column();
      const int64_t pair = pair_of_row(weight, first);
      multiply_pairs(linear, activations, {pair, pair_of_row(weight, end - 1) + 1 - pair, first}, scratch,
                     kernels, pool_);
      body(first, end - first, logits);
    }
  }

 private:
  Tensor matrix(int64_t at) const { return Tensor(workspace_ + at, DType::kF32, {count_, op_.x.shape[1]}); }

  const Op& op_;
  const LogprobPlan& plan_;
  ThreadPool& pool_;
  std::byte* workspace_;
  LossRow* rows_;
  int64_t from_ = 0, count_ = 0;
};

}  // namespace

size_t CpuBackend::workspace_bytes(const TokenLogprob& op) const {
  return LogprobPlan(op, false, pool_.size()).bytes;
}

void CpuBackend::do_token_logprob(const TokenLogprob& op) {
  const LogprobPlan plan(op, false, pool_.size());
  const SampleKernels& kernels = choose(kSampleGeneric, kSampleAvx2, kSampleAvx512);
  std::fill_n(op.logprob.as<float>(), op.x.shape[0], 0.0f);
  std::fill_n(op.log_sum_exp.as<float>(), op.x.shape[0], 0.0f);
  LossRows rows(op, plan, pool_);
  while (rows.next([](int64_t) { return true; })) {
    rows.for_each_piece(false, [&](int64_t first, int64_t count, float* logits) {
      pool_.parallel_for(rows.count(), row_grain(count), [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t) {
          float* z = logits + t * kPieceStride;
          kernels.divide(z, count, op.temperature, z);
          rows[t].sum.add(kernels, z, count);
          const int64_t label = rows[t].label - first;
          if (label >= 0 && label < count) rows[t].label_z = z[label];
        }
      });
    });
    for (int64_t t = 0; t < rows.count(); ++t) {
      const double sum = rows[t].sum.value();
      op.log_sum_exp.as<float>()[rows[t].row] = static_cast<float>(sum);
      op.logprob.as<float>()[rows[t].row] = static_cast<float>(static_cast<double>(rows[t].label_z) - sum);
    }
  }
}

size_t CpuBackend::workspace_bytes(const TokenLogprobBackward& op) const {
  return LogprobPlan(op, true, pool_.size()).bytes;
}

void CpuBackend::do_token_logprob_backward(const TokenLogprobBackward& op) {
  const LogprobPlan plan(op, true, pool_.size());
  const TokenLogprobKernels& kernels = choose(kTokenLogprobGeneric, kTokenLogprobAvx2, kTokenLogprobAvx512);
  const float* dlogprob = op.dlogprob.as<float>();
  const int64_t columns = op.x.shape[1];
  for (int64_t t = 0; op.dx.present() && t < op.x.shape[0]; ++t) {
    std::fill_n(op.dx.as<float>() + t * op.dx.stride[0], columns, 0.0f);
  }
  LossRows rows(op, plan, pool_);
  const GradientContext context{linear_kernels(active_isa()),
                                choose(kLinearBackwardGeneric, kLinearBackwardAvx2, kLinearBackwardAvx512),
                                pool_, op.workspace.as<std::byte>() + plan.gradients_at};
  const auto& weight = static_cast<const CpuWeight&>(*op.weight);
  while (rows.next([&](int64_t row) { return dlogprob[row] != 0; })) {
    rows.for_each_piece(true, [&](int64_t first, int64_t count, float* logits) {
      pool_.parallel_for(rows.count(), row_grain(count), [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t) {
          const LossRow& row = rows[t];
          kernels.gradients({logits + t * kPieceStride, count, row.label - first, op.temperature, op.soft_cap,
                             op.log_sum_exp.as<float>()[row.row], dlogprob[row.row] / op.temperature});
        }
      });
      const Tensor dz = Tensor(logits, DType::kF32, {rows.count(), kPieceStride}).narrow(1, 0, count);
      if (op.dx.present()) input_gradient(dz, {weight, first}, rows.dx(), first > 0, context);
      if (op.dw.present()) weight_gradient(dz, rows.x(), op.dw.as<float>() + first * columns, context);
    });
    for (int64_t t = 0; op.dx.present() && t < rows.count(); ++t) {
      std::copy_n(rows.dx().as<float>() + t * columns, columns,
                  op.dx.as<float>() + rows[t].row * op.dx.stride[0]);
    }
  }
}

}  // namespace qiao::cpu
