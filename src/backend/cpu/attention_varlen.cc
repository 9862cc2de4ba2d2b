// Attention over packed sequences: the block kernel is attention_paged's (attention_inl.h has its plan), the
// laying out of keys and values kv_write's. An item of work is one key/value head of one sequence and a run
// of its queries, small enough for L2; it lays out each block of 64 keys and lets its queries meet it, with
// an online softmax; causal attention in attention_paged's very order (attention_order.h). Laying out costs
// 1 / (queries of the run) of the products.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include "backend/cpu/attention_order.h"
#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/kv_write_kernels.h"
#include "base/error.h"

namespace qiao::cpu {
namespace {

constexpr int64_t kRunRows = 128;                  // queries × heads of an item
constexpr int64_t kSmallVarlenProducts = 1 << 17;  // below some ten microseconds, one thread does it all

constexpr auto kBlockSlots = [] {
  std::array<int32_t, kBlockKeys> slots{};
  std::iota(slots.begin(), slots.end(), 0);
  return slots;
}();

// All sizes that follow from shapes; the workspace is [first item of each sequence][a scratch for each
// worker]. A scratch holds, in floats: keys, values, queries, scores, biases, and largest, sums and out, of
// causal attention twice: a chunk's and the total.
struct VarlenPlan {
  int64_t share, dim, pitch, run, rows, worker_floats, items_bytes;

  explicit VarlenPlan(const AttentionVarlen& op) {
    const auto up = [](int64_t value, int64_t to) { return (value + to - 1) / to * to; };
    share = op.q.shape[1] / op.k.shape[1];
    dim = op.q.shape[2];
    pitch = up(dim, 16);
    run = std::max<int64_t>(1, kRunRows / share);
    const int64_t biases = op.bias.present() ? kBlockKeys : 0;
    rows = std::min(run, std::max<int64_t>(op.q.shape[0], 1)) * share;
    const int64_t results = (op.causal ? 2 : 1) * (pitch + 2);
    worker_floats = up(kBlockKeys * (dim + pitch) + rows * (dim + kBlockKeys + 1 + biases + results), 16);
    items_bytes = up(op.starts.shape[0] * static_cast<int64_t>(sizeof(int64_t)), 64);
  }
  int64_t bytes(int threads) const { return items_bytes + 4 * threads * worker_floats; }
};

struct VarlenKernels {
  const AttentionKernels& attention;
  const KvWriteKernels& kv_write;
};

// The biases of some rows, `share` heads from `head` on of each query from `query` on, towards count keys
// from `key` on.
void gather_biases(const Tensor& bias, int64_t share, int64_t head, int64_t rows, int64_t query, int64_t key,
                   int64_t count, float* out) {
  const int64_t zero = (bias.shape[1] - 1) / 2;
  for (int64_t r = 0; r < rows; ++r) {
    const float* from =
        bias.as<float>() + (head + r % share) * bias.shape[1] + zero + key - query - r / share;
    std::copy_n(from, count, out + r * kBlockKeys);
    std::fill_n(out + r * kBlockKeys + count, kBlockKeys - count, 0.0f);
  }
}

// One key/value head of the sequence whose rows are [first, last).
class VarlenHead {
 public:
  VarlenHead(const AttentionVarlen& op, const VarlenPlan& plan, const VarlenKernels& kernels, int64_t head,
             int64_t first, int64_t last, float* scratch)
      : op_(op), plan_(plan), kernels_(kernels), head_(head), first_(first), last_(last) {
    keys_ = scratch;
    values_ = keys_ + kBlockKeys * plan.dim;
    q_ = values_ + kBlockKeys * plan.pitch;
    float* scores = q_ + plan.rows * plan.dim;
    float* at = scores + plan.rows * (kBlockKeys + 1);
    if (op.bias.present()) {
      biases_ = at;
      at += plan.rows * kBlockKeys;
    }
    chunk_ = {at, at + plan.rows, at + 2 * plan.rows};
    at += plan.rows * (plan.pitch + 2);
    total_ = {at, at + plan.rows, at + 2 * plan.rows};  // of causal attention only
    for (int64_t group = 0; group < kBlockGroups; ++group) {
      block_.here.keys[group] = keys_ + group * 16 * plan.dim;
      block_.here.values[group] = values_ + group * 16 * plan.pitch;
    }
    block_.next = block_.here;
    block_.q = q_;
    block_.dim = plan.dim;
    block_.pitch = plan.pitch;
    block_.scale = op.scale;
    block_.soft_cap = op.soft_cap;
    block_.scores = scores;
    block_.bias = biases_;
  }

  // Queries at rows [begin, end).
  void attend(int64_t begin, int64_t end) {
    const int64_t rows = (end - begin) * plan_.share;
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = op_.q.as<float>() + (begin + r / plan_.share) * op_.q.stride[0] +
                          (head_ * plan_.share + r % plan_.share) * op_.q.stride[1];
      std::memcpy(q_ + r * plan_.dim, from, static_cast<size_t>(plan_.dim) * sizeof(float));
    }
    op_.causal ? see_before(begin, end) : see_all(begin, rows);
    const AttentionRows& result = op_.causal ? total_ : chunk_;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = begin + r / plan_.share, head = head_ * plan_.share + r % plan_.share;
      float* to = op_.out.as<float>() + token * op_.out.stride[0] + head * op_.out.stride[1];
      kernels_.attention.finish(result, r, plan_.pitch, plan_.dim, to);
      if (!op_.log_sum_exp.present()) continue;
      op_.log_sum_exp.as<float>()[token * op_.q.shape[1] + head] = static_cast<float>(
          static_cast<double>(result.largest[r]) + std::log(static_cast<double>(result.sum[r])));
    }
  }

 private:
  void see_all(int64_t query, int64_t rows) {
    std::fill_n(chunk_.sum, rows, 0.0f);
    block_.rows = rows;
    block_.first = 0;
    for (int64_t key = first_; key < last_; key += kBlockKeys) {
      block_.end = std::min(kBlockKeys, last_ - key);
      lay_out(key, block_.end, query, rows);
      kernels_.attention.add_f32(block_, chunk_);
    }
  }

  void see_before(int64_t begin, int64_t end) {
    const int64_t position = begin - first_, queries = end - begin, rows = queries * plan_.share;
    const int64_t from = first_key(position, op_.window), to = position + queries;
    std::fill_n(total_.sum, rows, 0.0f);
    for (int64_t chunk = from / kChunkKeys * kChunkKeys; chunk < to; chunk += kChunkKeys) {
      std::fill_n(chunk_.sum, rows, 0.0f);
      const int64_t chunk_end = std::min(chunk + kChunkKeys, to);
      for (int64_t key = std::max(chunk, from / kBlockKeys * kBlockKeys); key < chunk_end;
           key += kBlockKeys) {
        lay_out(first_ + key, std::min(kBlockKeys, chunk_end - key), begin, rows);
        meet_block(kernels_.attention.add_f32, block_, key, position, queries, plan_.share, op_.window,
                   chunk_);
      }
      kernels_.attention.merge(total_, chunk_, rows, plan_.pitch);
    }
  }

  // `count` keys and values from row `key` on, and the biases of the rows from row `query` on towards them.
  void lay_out(int64_t key, int64_t count, int64_t query, int64_t rows) {
    KvWrite write;
    write.k = op_.k.slice(key, count).narrow(1, head_, 1);
    write.v = op_.v.slice(key, count).narrow(1, head_, 1);
    write.slots = Tensor(const_cast<int32_t*>(kBlockSlots.data()), DType::kI32, {count});
    kernels_.kv_write.f32(write, {keys_, values_, kBlockKeys, 1, plan_.dim, plan_.pitch, true}, 0, count);
    if (biases_ == nullptr) return;
    gather_biases(op_.bias, plan_.share, head_ * plan_.share, rows, query, key, count, biases_);
  }

  const AttentionVarlen& op_;
  const VarlenPlan& plan_;
  const VarlenKernels& kernels_;
  int64_t head_, first_, last_;
  float *keys_, *values_, *q_, *biases_ = nullptr;
  AttentionRows chunk_, total_;
  AttentionBlock block_{};
};

}  // namespace

size_t CpuBackend::workspace_bytes(const AttentionVarlen& op) const {
  return static_cast<size_t>(VarlenPlan(op).bytes(pool_.size()));
}

void CpuBackend::do_attention_varlen(const AttentionVarlen& op) {
  const VarlenPlan plan(op);
  QIAO_ASSERT(op.workspace.bytes() >= plan.bytes(pool_.size()));
  const VarlenKernels kernels = {choose(kAttentionGeneric, kAttentionAvx2, kAttentionAvx512),
                                 choose(kKvWriteGeneric, kKvWriteAvx2, kKvWriteAvx512)};
  const int32_t* starts = op.starts.as<int32_t>();
  const int64_t sequences = op.starts.shape[0] - 1, heads = op.k.shape[1];
  auto* first_items = op.workspace.as<int64_t>();
  float* scratch = reinterpret_cast<float*>(op.workspace.as<char>() + plan.items_bytes);
  int64_t items = 0, pairs = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t length = starts[s + 1] - starts[s];
    first_items[s] = items;
    items += heads * ((length + plan.run - 1) / plan.run);
    pairs += length * length;
  }
  first_items[sequences] = items;
  const bool small = pairs * op.q.shape[1] * plan.dim < kSmallVarlenProducts;
  pool_.parallel_for(items, small ? items : 1, [&](int64_t begin, int64_t end, int worker) {
    const int64_t* after = std::upper_bound(first_items, first_items + sequences + 1, begin);
    int64_t s = after - first_items - 1;
    for (int64_t item = begin; item < end; ++item) {
      while (item >= first_items[s + 1]) ++s;
      const int64_t length = starts[s + 1] - starts[s], runs = (length + plan.run - 1) / plan.run;
      const int64_t head = (item - first_items[s]) / runs;
      const int64_t query = starts[s] + (item - first_items[s]) % runs * plan.run;
      VarlenHead(op, plan, kernels, head, starts[s], starts[s + 1], scratch + worker * plan.worker_floats)
          .attend(query, std::min<int64_t>(query + plan.run, starts[s + 1]));
    }
  });
}

}  // namespace qiao::cpu
