// The way back through attention over packed sequences (FlashAttention-2). An item of work is one key/value
// head of one sequence. For each block of 64 keys, and each block of 64 queries of each of its heads that
// sees some of it: q·k and dout·v by attention's own tiles (so p is of the forward pass's scores), the
// softmax's way back, and three more products by add_products_inl.h's tiles into dv, dk and dq. In kBF16 the
// blocks are rounded before those products, and multiplied in F32 as they are. The multiply-adds are the
// limit.
#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "backend/cpu/add_products_kernels.h"
#include "backend/cpu/attention_order.h"
#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/kv_write_kernels.h"
#include "backend/cpu/linear_backward_kernels.h"
#include "base/error.h"

namespace qiao::cpu {
namespace {

constexpr int64_t kQueryBlock = 64;
constexpr int64_t kSmallBackwardProducts = 1 << 16;  // below some ten microseconds, one thread does it all

// The workspace is [delta: T, H][a scratch for each worker]: keys and values laid out, rows of values beside
// them that nobody reads, a block of q and of dout, and its scores and their gradients; in kBF16 also rows of
// k and of q, rounded.
struct BackwardPlan {
  int64_t share, dim, pitch, delta_floats, worker_floats;
  bool rounds;

  explicit BackwardPlan(const AttentionVarlenBackward& op) {
    const auto up = [](int64_t value) { return (value + 15) / 16 * 16; };
    share = op.q.shape[1] / op.k.shape[1];
    dim = op.q.shape[2];
    pitch = up(dim);
    delta_floats = up(op.q.shape[0] * op.q.shape[1]);
    rounds = op.compute == Compute::kBF16;
    worker_floats = up(kBlockKeys * (2 * dim + pitch) + 2 * kQueryBlock * (dim + kBlockKeys) +
                       (rounds ? (kBlockKeys + kQueryBlock) * dim : 0));
  }
  int64_t bytes(int threads) const { return 4 * (delta_floats + threads * worker_floats); }
};

struct BackwardKernels {
  const AttentionKernels& attention;
  const AddProductsKernels& products;
  const KvWriteKernels& kv_write;
  void (*round)(const float* from, int64_t count, float* to);  // to BF16, kept as F32; to may be from
};

// One key/value head of the sequence whose rows are [first, first + length).
class BackwardHead {
 public:
  BackwardHead(const AttentionVarlenBackward& op, const BackwardPlan& plan, const BackwardKernels& kernels,
               int64_t group, int64_t first, int64_t length, float* delta, float* scratch)
      : op_(op),
        plan_(plan),
        kernels_(kernels),
        group_(group),
        first_(first),
        length_(length),
        delta_(delta) {
    keys_ = scratch;
    values_ = keys_ + kBlockKeys * plan.dim;
    unread_ = values_ + kBlockKeys * plan.dim;
    q_ = unread_ + kBlockKeys * plan.pitch;
    dout_ = q_ + kQueryBlock * plan.dim;
    scores_ = dout_ + kQueryBlock * plan.dim;
    products_ = scores_ + kQueryBlock * kBlockKeys;
    rounded_keys_ = products_ + kQueryBlock * kBlockKeys;
    rounded_q_ = rounded_keys_ + kBlockKeys * plan.dim;
  }

  void run() {
    for (int64_t t = 0; t < length_; ++t) {
      for (int64_t h = group_ * plan_.share; h < (group_ + 1) * plan_.share; ++h) {
        delta_[(first_ + t) * op_.q.shape[1] + h] =
            kernels_.attention.dot(row(op_.dout, t, h), row(op_.out, t, h), plan_.dim);
        std::fill_n(row(op_.dq, t, h), plan_.dim, 0.0f);
      }
      std::fill_n(row(op_.dk, t, group_), plan_.dim, 0.0f);
      std::fill_n(row(op_.dv, t, group_), plan_.dim, 0.0f);
    }
    for (int64_t key = 0; key < length_; key += kBlockKeys) {
      const int64_t keys = std::min(kBlockKeys, length_ - key);
      lay_out(op_.k, key, keys, keys_);
      lay_out(op_.v, key, keys, values_);
      if (plan_.rounds) {
        round(values_, kBlockKeys * plan_.dim, values_);
        round_rows(op_.k, key, keys, group_, rounded_keys_);
      }
      // The queries that see some of these keys; key is a multiple of kQueryBlock.
      const int64_t begin = op_.causal ? key : 0;
      const int64_t end = op_.window > 0 ? std::min(length_, key + keys - 1 + op_.window) : length_;
      for (int64_t h = group_ * plan_.share; h < (group_ + 1) * plan_.share; ++h) {
        for (int64_t query = begin; query < end; query += kQueryBlock) {
          add_block(h, key, keys, query, std::min(kQueryBlock, end - query));
        }
      }
    }
  }

 private:
  static_assert(kBlockKeys % kQueryBlock == 0);

  // Token t of the sequence and head h.
  float* row(const Tensor& tensor, int64_t t, int64_t h) const {
    return tensor.as<float>() + (first_ + t) * tensor.stride[0] + h * tensor.stride[1];
  }

  void round(const float* from, int64_t count, float* to) const { kernels_.round(from, count, to); }

  void lay_out(const Tensor& rows, int64_t key, int64_t keys, float* to) const {
    static constexpr auto kSlots = [] {
      std::array<int32_t, kBlockKeys> slots{};
      std::iota(slots.begin(), slots.end(), 0);
      return slots;
    }();
    KvWrite write;
    write.k = write.v = rows.slice(first_ + key, keys).narrow(1, group_, 1);
    write.slots = Tensor(const_cast<int32_t*>(kSlots.data()), DType::kI32, {keys});
    kernels_.kv_write.f32(write, {to, unread_, kBlockKeys, 1, plan_.dim, plan_.pitch, true}, 0, keys);
  }

  void copy_rows(const Tensor& from, int64_t query, int64_t queries, int64_t h, float* to) const {
    for (int64_t i = 0; i < queries; ++i) {
      std::memcpy(to + i * plan_.dim, row(from, query + i, h),
                  static_cast<size_t>(plan_.dim) * sizeof(float));
    }
  }

  void round_rows(const Tensor& from, int64_t first, int64_t count, int64_t h, float* to) const {
    for (int64_t i = 0; i < count; ++i) round(row(from, first + i, h), plan_.dim, to + i * plan_.dim);
  }

  void multiply(const float* rows, int64_t queries, const float* keys, int64_t count, float* scores) const {
    AttentionBlock block{};
    for (int64_t group = 0; group < kBlockGroups; ++group) {
      block.here.keys[group] = keys + group * 16 * plan_.dim;
    }
    block.next = block.here;
    block.end = count;
    block.q = rows;
    block.rows = queries;
    block.dim = plan_.dim;
    block.scores = scores;
    kernels_.attention.dots(block);
  }

  void add_block(int64_t h, int64_t key, int64_t keys, int64_t query, int64_t queries) const {
    const int64_t dim = plan_.dim, heads = op_.q.shape[1];
    copy_rows(op_.q, query, queries, h, q_);
    if (plan_.rounds) {
      round_rows(op_.dout, query, queries, h, dout_);
    } else {
      copy_rows(op_.dout, query, queries, h, dout_);
    }
    multiply(q_, queries, keys_, keys, scores_);
    multiply(dout_, queries, values_, keys, products_);
    const int64_t at = (first_ + query) * heads + h;
    kernels_.attention.gradients({scores_, products_, op_.log_sum_exp.as<float>() + at, delta_ + at, heads,
                                  queries, op_.scale, op_.soft_cap, keys, query - key, op_.window,
                                  op_.causal});
    const float *q = q_, *k = row(op_.k, key, group_);
    int64_t k_stride = op_.k.stride[0];
    if (plan_.rounds) {
      round(scores_, queries * kBlockKeys, scores_);
      round(products_, queries * kBlockKeys, products_);
      round(q_, queries * dim, rounded_q_);
      q = rounded_q_, k = rounded_keys_, k_stride = dim;
    }
    kernels_.products.add(
        {scores_, 1, kBlockKeys, dout_, dim, queries, row(op_.dv, key, group_), op_.dv.stride[0], keys, dim});
    kernels_.products.add(
        {products_, 1, kBlockKeys, q, dim, queries, row(op_.dk, key, group_), op_.dk.stride[0], keys, dim});
    kernels_.products.add(
        {products_, kBlockKeys, 1, k, k_stride, keys, row(op_.dq, query, h), op_.dq.stride[0], queries, dim});
  }

  const AttentionVarlenBackward& op_;
  const BackwardPlan& plan_;
  const BackwardKernels& kernels_;
  int64_t group_, first_, length_;
  float *delta_, *keys_, *values_, *unread_, *q_, *dout_, *scores_, *products_, *rounded_keys_, *rounded_q_;
};

}  // namespace

size_t CpuBackend::workspace_bytes(const AttentionVarlenBackward& op) const {
  return static_cast<size_t>(BackwardPlan(op).bytes(pool_.size()));
}

void CpuBackend::do_attention_varlen_backward(const AttentionVarlenBackward& op) {
  const BackwardPlan plan(op);
  QIAO_ASSERT(op.workspace.bytes() >= plan.bytes(pool_.size()));
  const BackwardKernels kernels = {
      choose(kAttentionGeneric, kAttentionAvx2, kAttentionAvx512),
      choose(kAddProductsGeneric, kAddProductsAvx2, kAddProductsAvx512),
      choose(kKvWriteGeneric, kKvWriteAvx2, kKvWriteAvx512),
      choose(kLinearBackwardGeneric, kLinearBackwardAvx2, kLinearBackwardAvx512).round_row};
  const int32_t* starts = op.starts.as<int32_t>();
  const int64_t sequences = op.starts.shape[0] - 1, groups = op.k.shape[1];
  float* delta = op.workspace.as<float>();
  float* scratch = delta + plan.delta_floats;
  int64_t pairs = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t length = starts[s + 1] - starts[s];
    pairs += length * length;
  }
  const int64_t items = sequences * groups;
  const bool small = pairs * op.q.shape[1] * plan.dim < kSmallBackwardProducts;
  pool_.parallel_for(items, small ? items : 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t s = item / groups;
      BackwardHead(op, plan, kernels, item % groups, starts[s], starts[s + 1] - starts[s], delta,
                   scratch + worker * plan.worker_floats)
          .run();
    }
  });
}

}  // namespace qiao::cpu
