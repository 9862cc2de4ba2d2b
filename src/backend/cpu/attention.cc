// Attention over paged keys and values: attention_inl.h has the plan of a block; here, which blocks meet
// which queries, and who works on what.
//
// An item of work is one key/value head of one sequence and a run of its queries, small enough for L2; it
// walks the keys in attention_order.h's chunks, each with its own online softmax, and merges them. Where a
// few long sequences would leave threads idle, an item is a single chunk, and the merging follows when all
// are done: the same operations in the same order, so who does what never shows in the result.
#include <algorithm>
#include <cstring>

#include "backend/cpu/attention_inl.h"
#include "backend/cpu/attention_order.h"
#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/kv_pages.h"
#include "backend/cpu/simd_generic.h"
#include "base/error.h"

namespace qiao::cpu {

using GenericKernel = AttentionKernel<generic::Simd>;
const AttentionKernels kAttentionGeneric = {
    GenericKernel::add<float>, GenericKernel::add<Half>, GenericKernel::add<Brain>, GenericKernel::add<Q8>,
    GenericKernel::add<E4m3>,  GenericKernel::merge,     GenericKernel::finish,     GenericKernel::dots,
    GenericKernel::dot,        GenericKernel::gradients};

namespace {

constexpr int64_t kSplitsPerThread = 4;      // items wanted a thread before long sequences stay whole
constexpr int64_t kSmallProducts = 1 << 17;  // below some ten microseconds, one thread does it all

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// A sequence's place in the list of items.
struct Sequence {
  int64_t first_item;
  int64_t per_head;  // items of one key/value head
  int64_t first_query, queries, length;
  int64_t first_chunk;
  float* partials;  // where its chunks' results go, or null: items are runs of queries, not chunks
};

// All sizes that follow from shapes; the workspace is [sequences][partials][a scratch for each worker].
struct Plan {
  int64_t share, dim, pitch, run, rows;  // share: query heads of a key/value head; run: queries of an item
  int64_t key_bytes, value_bytes;        // of a token and head
  int64_t row_floats, partial_floats, worker_floats;
  int64_t sequences_bytes;

  Plan(const AttentionPaged& op, int threads) {
    const auto& pages = static_cast<const CpuKvPages&>(*op.pages);
    const KvPagesSpec& spec = pages.spec();
    share = op.q.shape[1] / spec.kv_heads;
    dim = spec.head_dim;
    pitch = pages.pitch();
    key_bytes = pages.key_bytes();
    value_bytes = pages.value_bytes();
    run = std::clamp<int64_t>(64 / share, 1, 32);
    rows = std::min(run, std::max<int64_t>(op.q.shape[0], 1)) * share;
    row_floats = pitch + 2;
    // Fewer than kSplitsPerThread * threads heads of sequences are ever split: each has more than its part.
    const int64_t chunks = (op.page_table.shape[1] * spec.page_tokens + kChunkKeys - 1) / kChunkKeys;
    const int64_t split_rows = std::min(op.q.shape[0] * op.q.shape[1], kSplitsPerThread * threads * rows);
    partial_floats = threads > 1 && chunks > 1 ? round_up(split_rows * chunks * row_floats, 16) : 0;
    const int64_t packed_floats =
        pages.grouped() ? 0 : round_up(kBlockKeys * (key_bytes + value_bytes), 64) / 4;
    worker_floats = round_up(rows * (dim + kBlockKeys + 1 + 2 * row_floats), 16) + packed_floats;
    sequences_bytes = round_up((op.page_table.shape[0] + 1) * static_cast<int64_t>(sizeof(Sequence)), 64);
  }
  int64_t bytes(int threads) const {
    return sequences_bytes + 4 * (partial_floats + threads * worker_floats);
  }
};

// A worker's scratch, cut up.
struct Scratch {
  float *q, *scores;
  AttentionRows chunk, total;
  char *packed_keys, *packed_values;

  Scratch(const Plan& plan, float* at) {
    packed_keys = reinterpret_cast<char*>(
        at + round_up(plan.rows * (plan.dim + kBlockKeys + 1 + 2 * plan.row_floats), 16));
    packed_values = packed_keys + kBlockKeys * plan.key_bytes;
    chunk = rows_at(plan, at, plan.rows);
    total = rows_at(plan, at + plan.rows * plan.row_floats, plan.rows);
    q = at + 2 * plan.rows * plan.row_floats;
    scores = q + plan.rows * plan.dim;
  }
  static AttentionRows rows_at(const Plan& plan, float* at, int64_t rows) {
    return {at + rows * plan.pitch, at + rows * (plan.pitch + 1), at};
  }
};

class Attention {
 public:
  Attention(const AttentionPaged& op, const Plan& plan, const AttentionKernels& kernels)
      : op_(op), plan_(plan), pages_(static_cast<const CpuKvPages&>(*op.pages)), kernels_(kernels) {
    const DType dtype = pages_.spec().dtype;
    add_ = dtype == DType::kF32    ? kernels.add_f32
           : dtype == DType::kF16  ? kernels.add_f16
           : dtype == DType::kBF16 ? kernels.add_bf16
           : dtype == DType::kQ8_0 ? kernels.add_q8
                                   : kernels.add_f8;
  }

  // Queries [begin, end) of a sequence against chunks [first_chunk, end_chunk) of its keys. With `partial`
  // the one chunk's result goes there, else the whole result into op.out.
  void work(int64_t s, const Sequence& sequence, int64_t head, int64_t begin, int64_t end,
            int64_t first_chunk, int64_t end_chunk, const Scratch& scratch, float* partial) const {
    const int64_t rows = (end - begin) * plan_.share;
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = op_.q.as<float>() +
                          (sequence.first_query + begin + r / plan_.share) * op_.q.stride[0] +
                          (head * plan_.share + r % plan_.share) * op_.q.stride[1];
      std::memcpy(scratch.q + r * plan_.dim, from, static_cast<size_t>(plan_.dim) * sizeof(float));
    }
    std::fill_n(scratch.total.sum, rows, 0.0f);
    for (int64_t chunk = first_chunk; chunk < end_chunk; ++chunk) {
      const AttentionRows result =
          partial != nullptr ? Scratch::rows_at(plan_, partial, rows) : scratch.chunk;
      std::fill_n(result.sum, rows, 0.0f);
      add_chunk(s, sequence, head, begin, end, chunk, scratch, result);
      if (partial == nullptr) kernels_.merge(scratch.total, result, rows, plan_.pitch);
    }
    if (partial == nullptr) finish(sequence, head, begin, end, scratch.total);
  }

  // The merging of a split sequence's chunks, in order.
  void merge(const Sequence& sequence, int64_t head) const {
    const int64_t rows = sequence.queries * plan_.share;
    float* partials = sequence.partials + head * sequence.per_head * rows * plan_.row_floats;
    const AttentionRows total = Scratch::rows_at(plan_, partials, rows);
    for (int64_t chunk = 1; chunk < sequence.per_head; ++chunk) {
      kernels_.merge(total, Scratch::rows_at(plan_, partials + chunk * rows * plan_.row_floats, rows), rows,
                     plan_.pitch);
    }
    finish(sequence, head, 0, sequence.queries, total);
  }

  // The first key that a query at position p sees.
  int64_t first_key(int64_t p) const { return cpu::first_key(p, op_.window); }

 private:
  void finish(const Sequence& sequence, int64_t head, int64_t begin, int64_t end,
              const AttentionRows& rows) const {
    for (int64_t r = 0; r < (end - begin) * plan_.share; ++r) {
      float* to = op_.out.as<float>() + (sequence.first_query + begin + r / plan_.share) * op_.out.stride[0] +
                  (head * plan_.share + r % plan_.share) * op_.out.stride[1];
      kernels_.finish(rows, r, plan_.pitch, plan_.dim, to);
    }
  }

  void add_chunk(int64_t s, const Sequence& sequence, int64_t head, int64_t begin, int64_t end, int64_t chunk,
                 const Scratch& scratch, const AttentionRows& result) const {
    const int64_t before = sequence.length - sequence.queries;  // query i has position before + i
    const int64_t from = std::max(chunk * kChunkKeys, first_key(before + begin));
    const int64_t to = std::min((chunk + 1) * kChunkKeys, before + end);
    AttentionBlock block{};
    block.dim = plan_.dim;
    block.pitch = plan_.pitch;
    block.scale = op_.scale;
    block.soft_cap = op_.soft_cap;
    block.scores = scratch.scores;
    block.q = scratch.q;
    bool known = false;  // block.next is the coming block
    for (int64_t key = from / kBlockKeys * kBlockKeys; key < to; key += kBlockKeys) {
      if (known) {
        block.here = block.next;
      } else {
        locate(s, head, key, std::max(from, key), std::min(to, key + kBlockKeys), scratch, &block.here);
      }
      block.next = block.here;
      known = pages_.grouped() && key + kBlockKeys < to;
      if (known) {
        const int64_t after = key + kBlockKeys;
        locate(s, head, after, after, std::min(to, after + kBlockKeys), scratch, &block.next);
      }
      meet_block(add_, block, key, before + begin, end - begin, plan_.share, op_.window, result);
    }
  }

  // Finds the groups that hold keys [from, to), of which `key` is the block's first.
  void locate(int64_t s, int64_t head, int64_t key, int64_t from, int64_t to, const Scratch& scratch,
              AttentionGroups* groups) const {
    const int32_t* table = op_.page_table.as<int32_t>() + s * op_.page_table.stride[0];
    const int64_t page_tokens = pages_.spec().page_tokens;
    if (pages_.grouped()) {
      for (int64_t j = from / kKeyGroup * kKeyGroup; j < to; j += kKeyGroup) {
        const int64_t page = table[j / page_tokens], group = (j - key) / kKeyGroup;
        groups->keys[group] = pages_.key(page, j % page_tokens, head);
        groups->values[group] = pages_.value(page, j % page_tokens, head);
      }
      return;
    }
    for (int64_t group = 0; group < kBlockGroups; ++group) {
      groups->keys[group] = scratch.packed_keys + group * kKeyGroup * plan_.key_bytes;
      groups->values[group] = scratch.packed_values + group * kKeyGroup * plan_.value_bytes;
    }
    for (int64_t j = from; j < to; ++j) {
      const int64_t page = table[j / page_tokens], offset = j % page_tokens, at = j - key;
      row_to_lane(pages_.spec().dtype, plan_.dim, pages_.key(page, offset, head), at % kKeyGroup,
                  scratch.packed_keys + at / kKeyGroup * kKeyGroup * plan_.key_bytes);
      std::memcpy(scratch.packed_values + at * plan_.value_bytes, pages_.value(page, offset, head),
                  static_cast<size_t>(plan_.value_bytes));
    }
  }

  const AttentionPaged& op_;
  const Plan& plan_;
  const CpuKvPages& pages_;
  const AttentionKernels& kernels_;
  void (*add_)(const AttentionBlock&, const AttentionRows&);
};

}  // namespace

size_t CpuBackend::workspace_bytes(const AttentionPaged& op) const {
  return static_cast<size_t>(Plan(op, pool_.size()).bytes(pool_.size()));
}

void CpuBackend::do_attention_paged(const AttentionPaged& op) {
  const int threads = pool_.size();
  const Plan plan(op, threads);
  QIAO_ASSERT(op.workspace.bytes() >= plan.bytes(threads));
  const Attention attention(op, plan, choose(kAttentionGeneric, kAttentionAvx2, kAttentionAvx512));
  const int64_t count = op.page_table.shape[0], heads = op.pages->spec().kv_heads;
  auto* sequences = op.workspace.as<Sequence>();
  float* partials = reinterpret_cast<float*>(op.workspace.as<char>() + plan.sequences_bytes);
  float* scratch = partials + plan.partial_floats;

  int64_t pairs = 0;
  const auto keys_of = [&](const Sequence& sequence) {
    return sequence.length - attention.first_key(sequence.length - sequence.queries);
  };
  for (int64_t s = 0; s < count; ++s) {
    Sequence& sequence = sequences[s];
    sequence.first_query = op.query_starts.as<int32_t>()[s];
    sequence.queries = op.query_starts.as<int32_t>()[s + 1] - sequence.first_query;
    sequence.length = op.lengths.as<int32_t>()[s];
    sequence.first_chunk = attention.first_key(sequence.length - sequence.queries) / kChunkKeys;
    pairs += sequence.queries * keys_of(sequence);
  }
  int64_t items = 0, split = 0;
  for (int64_t s = 0; s < count; ++s) {
    Sequence& sequence = sequences[s];
    const int64_t chunks = (sequence.length + kChunkKeys - 1) / kChunkKeys - sequence.first_chunk;
    const bool long_one = sequence.queries * keys_of(sequence) * kSplitsPerThread * threads > pairs * heads;
    sequence.first_item = items;
    sequence.partials = nullptr;
    sequence.per_head = (sequence.queries + plan.run - 1) / plan.run;
    if (threads > 1 && chunks > 1 && sequence.per_head == 1 && long_one) {
      sequence.partials = partials;
      sequence.per_head = chunks;
      partials += heads * chunks * sequence.queries * plan.share * plan.row_floats;
      ++split;
    }
    items += heads * sequence.per_head;
  }
  sequences[count].first_item = items;

  const bool small = pairs * op.q.shape[1] * plan.dim < kSmallProducts;
  pool_.parallel_for(items, small ? items : 1, [&](int64_t begin, int64_t end, int worker) {
    const Scratch mine(plan, scratch + worker * plan.worker_floats);
    const Sequence* sequence =
        std::upper_bound(sequences, sequences + count, begin,
                         [](int64_t item, const Sequence& other) { return item < other.first_item; }) -
        1;
    for (int64_t item = begin; item < end; ++item) {
      while (item >= (sequence + 1)->first_item) ++sequence;
      const int64_t local = item - sequence->first_item, head = local / sequence->per_head;
      const int64_t part = local % sequence->per_head, s = sequence - sequences;
      if (sequence->partials != nullptr) {
        const int64_t chunk = sequence->first_chunk + part;
        attention.work(s, *sequence, head, 0, sequence->queries, chunk, chunk + 1, mine,
                       sequence->partials + local * sequence->queries * plan.share * plan.row_floats);
      } else {
        const int64_t first = part * plan.run, last = std::min(first + plan.run, sequence->queries);
        const int64_t before = sequence->length - sequence->queries;
        attention.work(s, *sequence, head, first, last, attention.first_key(before + first) / kChunkKeys,
                       (before + last + kChunkKeys - 1) / kChunkKeys, mine, nullptr);
      }
    }
  });
  if (split == 0) return;
  pool_.parallel_for(count * heads, row_grain(16 * plan.share * plan.pitch),
                     [&](int64_t begin, int64_t end, int) {
                       for (int64_t i = begin; i < end; ++i) {
                         const Sequence& sequence = sequences[i / heads];
                         if (sequence.partials != nullptr) attention.merge(sequence, i % heads);
                       }
                     });
}

}  // namespace qiao::cpu
