// Log-probabilities of known tokens and their way back. Plan: for some rows at a time, a piece of the
// vocabulary after the other: linear's products into the workspace, then a pass over each row while it is in
// a cache. The products are the limit; the weight is streamed once for each kRowsAtOnce rows.
#include <algorithm>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/simd_generic.h"
#include "backend/cpu/token_logprob_inl.h"
#include "backend/cpu/token_rows.h"

namespace qiao::cpu {

const TokenLogprobKernels kTokenLogprobGeneric = {TokenLogprobKernel<generic::Simd>::gradients};

namespace {

constexpr int64_t kRowsAtOnce = 1024;
// A pair of groups that a piece begins or ends inside is written whole: room for it on both sides.
constexpr int64_t kPairColumns = kPair * kGroupRows;
constexpr int64_t kPieceStride = kVocabularyPiece + 2 * kPairColumns;

// Logits of a piece, and room on both sides.
template <typename Op>
TokenPlan plan_of(const Op& op, bool backward, int threads) {
  const int64_t rows = std::min(op.x.shape[0], kRowsAtOnce);
  return {op, rows, rows * kPieceStride * static_cast<int64_t>(sizeof(float)), backward, threads};
}

}  // namespace

size_t CpuBackend::workspace_bytes(const TokenLogprob& op) const {
  return plan_of(op, false, pool_.size()).bytes;
}

void CpuBackend::do_token_logprob(const TokenLogprob& op) {
  const TokenPlan plan = plan_of(op, false, pool_.size());
  const SampleKernels& kernels = choose(kSampleGeneric, kSampleAvx2, kSampleAvx512);
  std::fill_n(op.logprob.as<float>(), op.x.shape[0], 0.0f);
  std::fill_n(op.log_sum_exp.as<float>(), op.x.shape[0], 0.0f);
  LossRows rows(op, plan, pool_);
  float* logits = rows.logits() + kPairColumns;
  while (rows.next([](int64_t) { return true; })) {
    rows.for_each_piece(
        false, kPieceStride, [&](int64_t) { return logits; },
        [&](int64_t first, int64_t count) {
          pool_.parallel_for(rows.count(), row_grain(count), [&](int64_t begin, int64_t end, int) {
            for (int64_t t = begin; t < end; ++t) {
              float* z = logits + t * kPieceStride;
              kernels.divide(z, count, op.temperature, z);
              rows[t].add(kernels, z, first, count);
            }
          });
        });
    rows.give_logprobs();
  }
}

size_t CpuBackend::workspace_bytes(const TokenLogprobBackward& op) const {
  return plan_of(op, true, pool_.size()).bytes;
}

void CpuBackend::do_token_logprob_backward(const TokenLogprobBackward& op) {
  const TokenPlan plan = plan_of(op, true, pool_.size());
  const TokenLogprobKernels& kernels = choose(kTokenLogprobGeneric, kTokenLogprobAvx2, kTokenLogprobAvx512);
  const float* dlogprob = op.dlogprob.as<float>();
  const int64_t columns = op.x.shape[1];
  if (op.dx.present()) clear_rows(op.dx);
  LossRows rows(op, plan, pool_);
  float* logits = rows.logits() + kPairColumns;
  const GradientContext context =
      head_gradients(op.compute, pool_, op.workspace.as<std::byte>() + plan.gradients_at);
  // Where dw adds up rows by pairs, those without a slope keep their places in it, as TokenLoss has them.
  const bool all = op.dw.present() && context.compute == Compute::kBF16 && context.kernels.bf16_steps > 1;
  while (rows.next([&](int64_t row) { return all || dlogprob[row] != 0; })) {
    for (int64_t t = 0; all && t < rows.count(); ++t) {
      if (dlogprob[rows[t].row] == 0) rows.clear_x(t);  // whatever it holds
    }
    rows.for_each_piece(
        true, kPieceStride, [&](int64_t) { return logits; },
        [&](int64_t first, int64_t count) {
          pool_.parallel_for(rows.count(), row_grain(count), [&](int64_t begin, int64_t end, int) {
            for (int64_t t = begin; t < end; ++t) {
              const LossRow& row = rows[t];
              float* z = logits + t * kPieceStride;
              if (dlogprob[row.row] == 0) {
                std::fill_n(z, count, 0.0f);
                continue;
              }
              kernels.gradients({z, count, row.label - first, op.temperature, op.soft_cap,
                                 op.log_sum_exp.as<float>()[row.row], dlogprob[row.row] / op.temperature});
            }
          });
          const Tensor dz = Tensor(logits, DType::kF32, {rows.count(), kPieceStride}).narrow(1, 0, count);
          if (op.dx.present()) input_gradient(dz, {rows.weight(), first}, rows.dx(), first > 0, context);
          if (op.dw.present()) weight_gradient(dz, rows.x(), op.dw.as<float>() + first * columns, context);
        });
    if (op.dx.present()) rows.give_dx();
  }
}

}  // namespace qiao::cpu
