// token_logprob and its way back. Plan: the rows that carry a loss are gathered, kLossRows at a time, into
// the workspace; a piece of the vocabulary after the other, linear's products of those rows lie there for one
// pass over each row: forward a block a row takes log_sum_exp.h's pieces, back a thread a logit makes h of
// it, which the two products of gradient.h use up (in BF16 by tensor cores). How many rows carry a loss is
// known to the device alone: kernels get counts, and blocks without rows end. The products are the limit.
// Measured: docs/h200.md.
#include "backend/ops/token_logprob.h"

#include <algorithm>

#include "backend/cuda/gradient.h"
#include "backend/cuda/log_sum_exp.h"
#include "backend/cuda/matmul_call.h"

namespace qiao::cuda {
namespace {

constexpr int64_t kLossRows = 1024;
constexpr int64_t kLogitColumns = 2 * kVocabularyPiece;
constexpr int kFindThreads = 1024, kPassThreads = 256;
static_assert(kLogitColumns % kVocabularyPiece == 0 && kLogitColumns % 32 == 0 &&
              kPassThreads == kPieceThreads);

// What a row has so far.
struct LossState {
  LogSumExp sum;
  float label_z;
};

// Row i of active is the i-th that carries a loss; counts[i]: how many are in the i-th kLossRows of them.
// Forward (logprob is there) the results of the others are 0.
__global__ void __launch_bounds__(kFindThreads)
    find_loss_rows(const int32_t* labels, const float* dlogprob, int64_t tokens, int32_t* active,
                   int32_t* counts, int count_of_counts, float* logprob, float* log_sum_exp) {
  begin_kernel();
  QIAO_SHARED(int, found, kFindThreads / 32);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  int before = 0;
  for (int64_t base = 0; base < tokens; base += kFindThreads) {
    const int64_t t = base + threadIdx.x;
    const bool carries = t < tokens && labels[t] >= 0 && (dlogprob == nullptr || dlogprob[t] != 0);
    const uint32_t bits = __ballot_sync(kAllLanes, carries);
    if (lane == 0) found[warp] = __popc(bits);
    __syncthreads();
    int at = before;
    for (int w = 0; w < kFindThreads / 32; ++w) {
      if (w < warp) at += found[w];
      before += found[w];
    }
    if (carries) active[at + __popc(bits & ((1u << lane) - 1))] = static_cast<int32_t>(t);
    if (t < tokens && !carries && logprob != nullptr) logprob[t] = log_sum_exp[t] = 0;
    __syncthreads();
  }
  for (int i = static_cast<int>(threadIdx.x); i < count_of_counts; i += kFindThreads) {
    const int64_t left = before - i * kLossRows;
    counts[i] = static_cast<int32_t>(left < 0 ? 0 : left < kLossRows ? left : kLossRows);
  }
}

// Rows of `from` that `active` names to rows of `to` side by side, or back.
template <bool kBack>
__global__ void __launch_bounds__(kPassThreads)
    move_rows(float* rows, int64_t stride, const int32_t* active, const int32_t* count, float* packed,
              int64_t width) {
  begin_kernel();
  if (static_cast<int>(blockIdx.x) >= *count) return;
  float* row = rows + active[blockIdx.x] * stride;
  float* own = packed + blockIdx.x * width;
  for (int64_t k = threadIdx.x; k < width; k += kPassThreads) {
    if (kBack) {
      row[k] = own[k];
    } else {
      own[k] = row[k];
    }
  }
}

__global__ void __launch_bounds__(kPassThreads) clear_rows(float* rows, int64_t stride, int64_t width) {
  begin_kernel();
  float* row = rows + blockIdx.x * stride;
  for (int64_t k = threadIdx.x; k < width; k += kPassThreads) row[k] = 0;
}

struct LogitPass {
  float* logits;  // [rows, columns], capped products of the ids from `first` on
  int64_t stride, first, columns;
  const int32_t *active, *count, *labels;
  float temperature, soft_cap;
  bool is_first, is_last;
  LossState* states;
  float *logprob, *log_sum_exp;
  const float* dlogprob;
};

__global__ void __launch_bounds__(kPassThreads) add_logits(LogitPass op) {
  begin_kernel();
  const int64_t i = blockIdx.x;
  if (i >= *op.count) return;
  const float* logits = op.logits + i * op.stride;
  const int64_t row = op.active[i], label = op.labels[row] - op.first;
  LossState state = {};
  if (!op.is_first) state = op.states[i];
  for (int64_t at = 0; at < op.columns; at += kVocabularyPiece) {
    const int64_t left = op.columns - at;
    state.sum.add(sum_piece(left < kVocabularyPiece ? left : kVocabularyPiece,
                            [&](int64_t v) { return logits[at + v] / op.temperature; }));
  }
  if (label >= 0 && label < op.columns) state.label_z = logits[label] / op.temperature;
  __syncthreads();  // all have read the state
  if (threadIdx.x != 0) return;
  op.states[i] = state;
  if (!op.is_last) return;
  const double sum = state.sum.value();
  op.log_sum_exp[row] = static_cast<float>(sum);
  op.logprob[row] = static_cast<float>(static_cast<double>(state.label_z) - sum);
}

// h in the place of the logits.
__global__ void __launch_bounds__(kPassThreads) logit_gradients(LogitPass op) {
  begin_kernel();
  const int64_t i = blockIdx.y;
  if (i >= *op.count) return;
  const int64_t v = int64_t{blockIdx.x} * kPassThreads + threadIdx.x, row = op.active[i];
  if (v >= op.columns) return;
  float& logit = op.logits[i * op.stride + v];
  const float capped = logit, p = expf(capped / op.temperature - op.log_sum_exp[row]);
  float h = ((v == op.labels[row] - op.first ? 1.0f : 0.0f) - p) * (op.dlogprob[row] / op.temperature);
  if (op.soft_cap > 0) {
    const float share = capped / op.soft_cap;
    h *= fmaf(-share, share, 1.0f);
  }
  logit = h;
}

// The pieces of a vocabulary that the way back takes, kLogitColumns at most: each begins where a stage of a
// panel's rows does. body(panel, its first row in it, its rows).
template <class Body>
void each_piece(const CudaWeight& weight, Body body) {
  for (size_t i = 0; i < weight.panels().size(); ++i) {
    const int64_t rows = weight.panels()[i].rows;
    for (int64_t first = 0; first < rows; first += kLogitColumns)
      body(i, first, std::min(kLogitColumns, rows - first));
  }
}

// The workspace: [logits][rows of x][rows of dx, on the way back][active][counts][states][the products', and
// then the way back's in BF16].
struct LogprobMemory {
  int64_t rows, runs, logit_columns;
  size_t x_at, dx_at, active_at, counts_at, states_at, products_at, bytes;

  template <class Op>
  LogprobMemory(const Op& op, bool back) {
    const int64_t tokens = op.x.shape[0], width = op.x.shape[1];
    rows = std::min(tokens, kLossRows);
    runs = ceil_div(tokens, kLossRows);
    logit_columns = std::min(kLogitColumns, op.weight->rows());
    const auto up = [](int64_t size) { return static_cast<size_t>(ceil_div(size, 256) * 256); };
    x_at = up(rows * logit_columns * static_cast<int64_t>(sizeof(float)));
    dx_at = x_at + up(rows * width * static_cast<int64_t>(sizeof(float)));
    active_at = dx_at + (back ? dx_at - x_at : 0);
    counts_at = active_at + up(tokens * static_cast<int64_t>(sizeof(int32_t)));
    states_at = counts_at + up(runs * static_cast<int64_t>(sizeof(int32_t)));
    products_at = states_at + up(rows * static_cast<int64_t>(sizeof(LossState)));
    size_t products = matmul_workspace_bytes(*op.weight, op.compute, rows);
    if (back && gradient_compute(op.compute) == Compute::kBF16) {
      each_piece(static_cast<const CudaWeight&>(*op.weight), [&](size_t, int64_t, int64_t columns) {
        products = std::max(products, bf16_gradient_bytes(1, columns, width, rows));
      });
    }
    bytes = products_at + products;
  }
};

// What both directions do with the rows that carry a loss: runs of them, each a call of body(run's rows at
// most, its `active` and `count`).
template <class Op>
class LossRows {
 public:
  LossRows(const Op& op, bool back, const CudaBackend& chip)
      : op_(op),
        memory_(op, back),
        chip_(chip),
        stream_(chip.stream()),
        base_(op.workspace.template as<std::byte>()) {}

  const LogprobMemory& memory() const { return memory_; }
  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }

  void find(const float* dlogprob, float* logprob, float* log_sum_exp) const {
    launch("token_logprob", stream_, find_loss_rows, 1, kFindThreads, 0, op_.labels.template as<int32_t>(),
           dlogprob, op_.x.shape[0], at<int32_t>(memory_.active_at), at<int32_t>(memory_.counts_at),
           static_cast<int>(memory_.runs), logprob, log_sum_exp);
  }

  // Of run `run`.
  int64_t most_rows(int64_t run) const { return std::min(kLossRows, op_.x.shape[0] - run * kLossRows); }
  const int32_t* active(int64_t run) const { return at<int32_t>(memory_.active_at) + run * kLossRows; }
  const int32_t* count(int64_t run) const { return at<int32_t>(memory_.counts_at) + run; }

  // Rows of x or dx to their place side by side in the workspace, or back.
  template <bool kBack>
  void move(int64_t run, const Tensor& rows, size_t packed_at) const {
    launch("token_logprob", stream_, move_rows<kBack>, static_cast<unsigned>(most_rows(run)), kPassThreads, 0,
           rows.as<float>(), rows.stride[0], active(run), count(run), at<float>(packed_at), rows.shape[1]);
  }

  // The capped products of the run with `columns` ids from `first` on; the pass over them.
  LogitPass logits(int64_t run, int64_t first, int64_t columns) const {
    MatmulCall call;
    call.weight = static_cast<const CudaWeight*>(op_.weight);
    call.first_row = first, call.end_row = first + columns;
    call.compute = op_.compute;
    call.x = at<float>(memory_.x_at), call.x_stride = op_.x.shape[1], call.tokens = most_rows(run);
    call.counts = count(run);
    call.y = at<float>(0), call.y_stride = memory_.logit_columns;
    if (op_.soft_cap > 0) call.activation = Activation::kSoftCap, call.soft_cap = op_.soft_cap;
    run_matmul(chip_, call, base_ + memory_.products_at);
    LogitPass pass = {};
    pass.logits = call.y, pass.stride = memory_.logit_columns, pass.first = first, pass.columns = columns;
    pass.active = active(run), pass.count = count(run), pass.labels = op_.labels.template as<int32_t>();
    pass.temperature = op_.temperature, pass.soft_cap = op_.soft_cap;
    pass.states = at<LossState>(memory_.states_at);
    pass.log_sum_exp = op_.log_sum_exp.template as<float>();
    return pass;
  }

 private:
  const Op& op_;
  LogprobMemory memory_;
  const CudaBackend& chip_;
  const Stream& stream_;
  std::byte* base_;
};

}  // namespace

size_t CudaBackend::workspace_bytes(const TokenLogprob& op) const { return LogprobMemory(op, false).bytes; }
size_t CudaBackend::workspace_bytes(const TokenLogprobBackward& op) const {
  return LogprobMemory(op, true).bytes;
}

void CudaBackend::do_token_logprob(const TokenLogprob& op) {
  const LossRows rows(op, false, *this);
  const int64_t vocabulary = op.weight->rows();
  if (op.x.shape[0] == 0) return;
  rows.find(nullptr, op.logprob.as<float>(), op.log_sum_exp.as<float>());
  for (int64_t run = 0; run < rows.memory().runs; ++run) {
    rows.move<false>(run, op.x, rows.memory().x_at);
    for (int64_t first = 0; first < vocabulary; first += kLogitColumns) {
      LogitPass pass = rows.logits(run, first, std::min(kLogitColumns, vocabulary - first));
      pass.is_first = first == 0, pass.is_last = first + kLogitColumns >= vocabulary;
      pass.logprob = op.logprob.as<float>();
      launch("token_logprob", stream_, add_logits, static_cast<unsigned>(rows.most_rows(run)), kPassThreads,
             0, pass);
    }
  }
}

void CudaBackend::do_token_logprob_backward(const TokenLogprobBackward& op) {
  const LossRows rows(op, true, *this);
  const auto& weight = static_cast<const CudaWeight&>(*op.weight);
  const int64_t tokens = op.x.shape[0], width = op.x.shape[1];
  const bool in_bf16 = gradient_compute(op.compute) == Compute::kBF16;
  if (tokens == 0) return;
  if (op.dx.present()) {
    launch("token_logprob_backward", stream_, clear_rows, static_cast<unsigned>(tokens), kPassThreads, 0,
           op.dx.as<float>(), op.dx.stride[0], width);
  }
  rows.find(op.dlogprob.as<float>(), nullptr, nullptr);
  for (int64_t run = 0; run < rows.memory().runs; ++run) {
    const int64_t most = rows.most_rows(run);
    rows.move<false>(run, op.x, rows.memory().x_at);
    bool add = false;
    each_piece(weight, [&](size_t i, int64_t first, int64_t columns) {
      const int64_t id = weight.panels()[i].first_row + first;
      LogitPass pass = rows.logits(run, id, columns);
      pass.dlogprob = op.dlogprob.as<float>();
      launch("token_logprob_backward", stream_, logit_gradients,
             dim3(blocks_for(columns, kPassThreads), static_cast<unsigned>(most)), kPassThreads, 0, pass);
      auto* products = rows.at<std::byte>(rows.memory().products_at);
      if (op.dx.present()) {
        GradientArguments a;
        a.weight = weight.rows_of(0, i);
        a.first_row = first, a.end_row = first + columns;
        a.dy = pass.logits, a.dy_stride = pass.stride, a.column = -first, a.tokens = most;
        a.counts = rows.count(run);
        a.dx = rows.at<float>(rows.memory().dx_at), a.dx_stride = width, a.add = add;
        in_bf16 ? run_input_gradient_bf16(*this, a, products) : launch_input_gradient(stream_, a);
      }
      if (op.dw.present()) {
        WeightGradientArguments a;
        a.dy = pass.logits, a.dy_stride = pass.stride;
        a.x = rows.at<float>(rows.memory().x_at), a.x_stride = width;
        a.tokens = most, a.rows = columns, a.columns = width;
        a.counts = rows.count(run);
        a.dw = op.dw.as<float>() + id * width;
        in_bf16 ? run_weight_gradient_bf16(*this, a, products) : launch_weight_gradient(stream_, a);
      }
      add = true;
    });
    if (op.dx.present()) rows.move<true>(run, op.dx, rows.memory().dx_at);
  }
}

}  // namespace qiao::cuda
