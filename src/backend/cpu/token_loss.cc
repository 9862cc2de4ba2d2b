// Log-probabilities of known tokens and their way back at once. Plan: for some rows at a time, the logits of
// the whole vocabulary are made once and kept; as each piece of them is made, its exponentials are added up
// while it lies in a cache. Then each piece turns into gradients in place, and its two products follow while
// it lies there. The products are the limit, three where the two ops apart take four.
#include <algorithm>
#include <cstring>
#include <new>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/linear_backward.h"
#include "backend/cpu/log_sum_exp.h"
#include "backend/cpu/token_logprob_kernels.h"
#include "base/error.h"

namespace qiao::cpu {
namespace {

constexpr int64_t kLogitBytes = int64_t{128} << 20;  // about, of the logits that are kept
constexpr int64_t kLeastRows = 64, kMostRows = 1024;

// A row that carries a loss, and what it has so far.
struct TaughtRow {
  int64_t row, label;
  LogSumExp sum;
};

// The workspace is [logits][rows of x that carry a loss][of dx][the products' own][the rows' states][the
// matmul's].
struct LossPlan {
  int64_t rows, stride;  // of the logits
  int64_t x_at, dx_at, gradients_at, rows_at, matmul_at;
  size_t bytes;

  LossPlan(const TokenLoss& op, int threads) {
    const auto up = [](int64_t size) { return (size + 63) / 64 * 64; };
    const int64_t columns = op.x.shape[1], vocabulary = op.weight->rows();
    stride = vocabulary / 16 * 16 + 48;  // no power of two: rows would meet in the same sets of a cache
    const int64_t row_bytes = stride * static_cast<int64_t>(sizeof(float));
    rows = std::min(op.x.shape[0], std::clamp(kLogitBytes / row_bytes / 16 * 16, kLeastRows, kMostRows));
    const int64_t own = up(rows * columns * static_cast<int64_t>(sizeof(float)));
    const int64_t width = std::min(vocabulary, kVocabularyPiece);
    x_at = up(rows * row_bytes);
    dx_at = x_at + own;
    gradients_at = dx_at + own;
    rows_at =
        gradients_at + up(static_cast<int64_t>(gradient_workspace_bytes(rows, width, columns, threads)));
    matmul_at = rows_at + up(rows * static_cast<int64_t>(sizeof(TaughtRow)));
    bytes = static_cast<size_t>(matmul_at) + matmul_workspace_bytes(rows, columns, op.compute, threads);
  }
};

class LossBlock {
 public:
  LossBlock(const TokenLoss& op, ThreadPool& pool)
      : op_(op),
        plan_(op, pool.size()),
        pool_(pool),
        weight_(static_cast<const CpuWeight&>(*op.weight)),
        workspace_(op.workspace.as<std::byte>()),
        logits_(reinterpret_cast<float*>(workspace_)),
        rows_(reinterpret_cast<TaughtRow*>(workspace_ + plan_.rows_at)) {}

  // Takes the next rows with a label, their x side by side; false where none is left.
  bool next() {
    count_ = 0;
    auto* to = reinterpret_cast<float*>(workspace_ + plan_.x_at);
    const int64_t columns = op_.x.shape[1];
    for (; from_ < op_.x.shape[0] && count_ < plan_.rows; ++from_) {
      const int64_t label = op_.labels.as<int32_t>()[from_];
      if (label < 0) continue;
      new (rows_ + count_) TaughtRow{from_, label, {}};
      std::memcpy(to + count_++ * columns, op_.x.as<float>() + from_ * op_.x.stride[0],
                  static_cast<size_t>(columns) * sizeof(float));
    }
    return count_ > 0;
  }

  void make_logits() {
    const SampleKernels& kernels = choose(kSampleGeneric, kSampleAvx2, kSampleAvx512);
    const LinearKernels& linear_kernels_of_isa = linear_kernels(active_isa());
    Linear linear;
    linear.x = x();
    linear.weight = op_.weight;
    linear.compute = op_.compute;
    if (op_.soft_cap > 0) linear.activation = Activation::kSoftCap, linear.soft_cap = op_.soft_cap;
    std::byte* own = workspace_ + plan_.matmul_at;
    const Activations activations =
        prepare(linear.x, weight_, op_.compute, linear_kernels_of_isa, pool_, own);
    MatmulScratch* scratch = scratches(count_, op_.x.shape[1], op_.compute, own);
    for (int64_t first = 0; first < weight_.rows(); first += kVocabularyPiece) {
      const int64_t count = std::min(kVocabularyPiece, weight_.rows() - first);
      const int64_t pair = pair_of_row(weight_, first);
      linear.y = Tensor(logits_ + first, DType::kF32, {count_, plan_.stride});
      multiply_pairs(linear, activations, {pair, pair_of_row(weight_, first + count - 1) + 1 - pair, first},
                     scratch, linear_kernels_of_isa, pool_);
      pool_.parallel_for(count_, row_grain(count), [&](int64_t begin, int64_t end, int) {
        alignas(64) float z[kVocabularyPiece];
        for (int64_t t = begin; t < end; ++t) {
          kernels.divide(logits_ + t * plan_.stride + first, count, op_.temperature, z);
          rows_[t].sum.add(kernels, z, count);
        }
      });
    }
    for (int64_t t = 0; t < count_; ++t) {
      const double sum = rows_[t].sum.value();
      float label_z = 0;
      kernels.divide(logits_ + t * plan_.stride + rows_[t].label, 1, op_.temperature, &label_z);
      op_.log_sum_exp.as<float>()[rows_[t].row] = static_cast<float>(sum);
      op_.logprob.as<float>()[rows_[t].row] = static_cast<float>(static_cast<double>(label_z) - sum);
    }
  }

  void walk_back() {
    const TokenLogprobKernels& kernels = choose(kTokenLogprobGeneric, kTokenLogprobAvx2, kTokenLogprobAvx512);
    const GradientContext context{linear_kernels(active_isa()),
                                  choose(kLinearBackwardGeneric, kLinearBackwardAvx2, kLinearBackwardAvx512),
                                  pool_, workspace_ + plan_.gradients_at};
    const int64_t columns = op_.x.shape[1];
    const Tensor all(logits_, DType::kF32, {count_, plan_.stride});
    for (int64_t first = 0, end = 0; first < weight_.rows(); first = end) {
      end = std::min(first + kVocabularyPiece, weight_.rows());
      // Where a pair of groups ends: the products begin at one.
      if (end < weight_.rows()) end = find_pair(weight_, pair_of_row(weight_, end)).column();
      pool_.parallel_for(count_, row_grain(end - first), [&](int64_t begin, int64_t last, int) {
        for (int64_t t = begin; t < last; ++t) turn(kernels, t, first, end - first);
      });
      const Tensor dz = all.narrow(1, first, end - first);
      input_gradient(dz, {weight_, first}, dx(), first > 0, context);
      if (op_.dw.present()) weight_gradient(dz, x(), op_.dw.as<float>() + first * columns, context);
    }
    for (int64_t t = 0; t < count_; ++t) {
      std::copy_n(dx().as<float>() + t * columns, columns,
                  op_.dx.as<float>() + rows_[t].row * op_.dx.stride[0]);
    }
  }

 private:
  // A piece of a row: logits to gradients.
  void turn(const TokenLogprobKernels& kernels, int64_t t, int64_t first, int64_t count) {
    float* logits = logits_ + t * plan_.stride + first;
    const int64_t row = rows_[t].row;
    const float slope = op_.dlogprob.as<float>()[row];
    if (slope == 0) return static_cast<void>(std::fill_n(logits, count, 0.0f));
    kernels.gradients({logits, count, rows_[t].label - first, op_.temperature, op_.soft_cap,
                       op_.log_sum_exp.as<float>()[row], slope / op_.temperature});
  }
  Tensor matrix(int64_t at) const { return Tensor(workspace_ + at, DType::kF32, {count_, op_.x.shape[1]}); }
  Tensor x() const { return matrix(plan_.x_at); }
  Tensor dx() const { return matrix(plan_.dx_at); }

  const TokenLoss& op_;
  const LossPlan plan_;
  ThreadPool& pool_;
  const CpuWeight& weight_;
  std::byte* workspace_;
  float* logits_;
  TaughtRow* rows_;
  int64_t from_ = 0, count_ = 0;
};

}  // namespace

size_t CpuBackend::workspace_bytes(const TokenLoss& op) const { return LossPlan(op, pool_.size()).bytes; }

void CpuBackend::do_token_loss(const TokenLoss& op) {
  const int64_t tokens = op.x.shape[0];
  std::fill_n(op.logprob.as<float>(), tokens, 0.0f);
  std::fill_n(op.log_sum_exp.as<float>(), tokens, 0.0f);
  for (int64_t t = 0; t < tokens; ++t) {
    std::fill_n(op.dx.as<float>() + t * op.dx.stride[0], op.x.shape[1], 0.0f);
  }
  LossBlock block(op, pool_);
  while (block.next()) {
    block.make_logits();
    block.walk_back();
  }
}

}  // namespace qiao::cpu
