// Log-probabilities of known tokens and their way back at once. Plan: for some rows at a time, the logits of
// the whole vocabulary are made once and kept; as each piece of them is made, its exponentials are added up
// while it lies in a cache. Then each piece turns into gradients in place, and its two products follow while
// it lies there. The products are the limit, three where the two ops apart take four.
#include <algorithm>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/token_logprob_kernels.h"
#include "backend/cpu/token_rows.h"

namespace qiao::cpu {
namespace {

constexpr int64_t kLogitBytes = int64_t{128} << 20;  // about, of the logits that are kept
constexpr int64_t kLeastRows = 64, kMostRows = 1024;

// Floats from a row of logits to the next. No power of two: rows would meet in the same sets of a cache.
int64_t logit_stride(const TokenLoss& op) { return op.weight->rows() / 16 * 16 + 48; }

TokenPlan plan_of_loss(const TokenLoss& op, int threads) {
  const int64_t row_bytes = logit_stride(op) * static_cast<int64_t>(sizeof(float));
  const int64_t rows =
      std::min(op.x.shape[0], std::clamp(kLogitBytes / row_bytes / 16 * 16, kLeastRows, kMostRows));
  return {op, rows, rows * row_bytes, true, threads};
}

// All logits of these rows, and their log-probabilities.
void make_logits(const TokenLoss& op, LossRows<TokenLoss>& rows, ThreadPool& pool) {
  const SampleKernels& kernels = choose(kSampleGeneric, kSampleAvx2, kSampleAvx512);
  const int64_t stride = logit_stride(op);
  rows.for_each_piece(
      false, stride, [&](int64_t first) { return rows.logits() + first; },
      [&](int64_t first, int64_t count) {
        pool.parallel_for(rows.count(), row_grain(count), [&](int64_t begin, int64_t end, int) {
          alignas(64) float z[kVocabularyPiece];
          for (int64_t t = begin; t < end; ++t) {
            kernels.divide(rows.logits() + t * stride + first, count, op.temperature, z);
            rows[t].add(kernels, z, first, count);
          }
        });
      });
  rows.give_logprobs();
}

void walk_back(const TokenLoss& op, const LossRows<TokenLoss>& rows, const GradientContext& context) {
  const TokenLogprobKernels& kernels = choose(kTokenLogprobGeneric, kTokenLogprobAvx2, kTokenLogprobAvx512);
  const int64_t columns = op.x.shape[1], stride = logit_stride(op);
  const Tensor all(rows.logits(), DType::kF32, {rows.count(), stride});
  // A piece of a row: logits to gradients.
  const auto turn = [&](int64_t t, int64_t first, int64_t count) {
    float* logits = rows.logits() + t * stride + first;
    const LossRow& row = rows[t];
    const float slope = op.dlogprob.as<float>()[row.row];
    if (slope == 0) return static_cast<void>(std::fill_n(logits, count, 0.0f));
    kernels.gradients({logits, count, row.label - first, op.temperature, op.soft_cap,
                       op.log_sum_exp.as<float>()[row.row], slope / op.temperature});
  };
  for (int64_t first = 0, end = 0; first < rows.weight().rows(); first = end) {
    end = rows.end_of_piece(first, true);
    context.pool.parallel_for(rows.count(), row_grain(end - first), [&](int64_t begin, int64_t last, int) {
      for (int64_t t = begin; t < last; ++t) turn(t, first, end - first);
    });
    const Tensor dz = all.narrow(1, first, end - first);
    input_gradient(dz, {rows.weight(), first}, rows.dx(), first > 0, context);
    if (op.dw.present()) weight_gradient(dz, rows.x(), op.dw.as<float>() + first * columns, context);
  }
  rows.give_dx();
}

}  // namespace

size_t CpuBackend::workspace_bytes(const TokenLoss& op) const { return plan_of_loss(op, pool_.size()).bytes; }

void CpuBackend::do_token_loss(const TokenLoss& op) {
  const TokenPlan plan = plan_of_loss(op, pool_.size());
  std::fill_n(op.logprob.as<float>(), op.x.shape[0], 0.0f);
  std::fill_n(op.log_sum_exp.as<float>(), op.x.shape[0], 0.0f);
  clear_rows(op.dx);
  LossRows rows(op, plan, pool_);
  const GradientContext context =
      head_gradients(op.compute, pool_, op.workspace.as<std::byte>() + plan.gradients_at);
  while (rows.next([](int64_t) { return true; })) {
    make_logits(op, rows, pool_);
    walk_back(op, rows, context);
  }
}

}  // namespace qiao::cpu
