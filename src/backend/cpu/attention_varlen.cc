// Attention over packed sequences: the block kernel is attention_paged's (attention_inl.h has its plan), the
// laying out of keys and values kv_write's. An item of work is one key/value head of one sequence and a run
// of its queries, small enough for L2; it lays out each block of 64 keys and lets its queries meet it, with
// an online softmax. Laying out costs 1 / (queries of the run) of the products.
#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "backend/cpu/attention_kernels.h"
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
// worker]. A scratch holds, in floats: keys, values, queries, scores, largest, sums, out, biases.
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
    worker_floats = up(kBlockKeys * (dim + pitch) + rows * (dim + kBlockKeys + 1 + pitch + 2 + biases), 16);
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

// Queries [begin, end) of the sequence whose rows are [first, last), with one key/value head.
void attend(const AttentionVarlen& op, const VarlenPlan& plan, const VarlenKernels& kernels, int64_t head,
            int64_t first, int64_t last, int64_t begin, int64_t end, float* scratch) {
  const int64_t rows = (end - begin) * plan.share;
  float* keys = scratch;
  float* values = keys + kBlockKeys * plan.dim;
  float* q = values + kBlockKeys * plan.pitch;
  float* scores = q + plan.rows * plan.dim;
  float* largest = scores + plan.rows * (kBlockKeys + 1);
  const AttentionRows result = {largest, largest + plan.rows, largest + 2 * plan.rows};
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = op.q.as<float>() + (begin + r / plan.share) * op.q.stride[0] +
                        (head * plan.share + r % plan.share) * op.q.stride[1];
    std::memcpy(q + r * plan.dim, from, static_cast<size_t>(plan.dim) * sizeof(float));
  }
  std::fill_n(result.sum, rows, 0.0f);
  const KvTarget target = {keys, values, kBlockKeys, 1, plan.dim, plan.pitch, true};
  AttentionBlock block{};
  for (int64_t group = 0; group < kBlockGroups; ++group) {
    block.here.keys[group] = keys + group * 16 * plan.dim;
    block.here.values[group] = values + group * 16 * plan.pitch;
  }
  block.next = block.here;
  block.q = q;
  block.rows = rows;
  block.dim = plan.dim;
  block.pitch = plan.pitch;
  block.scale = op.scale;
  block.scores = scores;
  float* biases = op.bias.present() ? result.out + plan.rows * plan.pitch : nullptr;
  block.bias = biases;
  for (int64_t key = first; key < last; key += kBlockKeys) {
    block.end = std::min(kBlockKeys, last - key);
    KvWrite write;
    write.k = op.k.slice(key, block.end).narrow(1, head, 1);
    write.v = op.v.slice(key, block.end).narrow(1, head, 1);
    write.slots = Tensor(const_cast<int32_t*>(kBlockSlots.data()), DType::kI32, {block.end});
    kernels.kv_write.f32(write, target, 0, block.end);
    if (biases != nullptr)
      gather_biases(op.bias, plan.share, head * plan.share, rows, begin, key, block.end, biases);
    kernels.attention.add_f32(block, result);
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* to = op.out.as<float>() + (begin + r / plan.share) * op.out.stride[0] +
                (head * plan.share + r % plan.share) * op.out.stride[1];
    kernels.attention.finish(result, r, plan.pitch, plan.dim, to);
  }
}

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
      attend(op, plan, kernels, head, starts[s], starts[s + 1], query,
             std::min<int64_t>(query + plan.run, starts[s + 1]), scratch + worker * plan.worker_floats);
    }
  });
}

}  // namespace qiao::cpu
