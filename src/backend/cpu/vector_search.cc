// The nearest rows of a table. Plan: linear's, with nothing written: a thread multiplies some queries with a
// pair of the table's groups (32 rows), whose scores lie in its scratch, and takes those that may be among
// the best on to its own short list of each query; at the end the threads' lists are one. A score costs its
// products and, in the long run, a comparison. The order is total (a score, then the id), so it does not
// matter which thread saw what. The table is streamed once for each row_block() queries; the limit is memory
// for few queries, the products for many. Measured: docs/performance.md.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/matmul.h"
#include "backend/cpu/sample_kernels.h"
#include "tensor/half.h"

namespace qiao::cpu {
namespace {

// Grows with the score and, among equals (0 and -0 are), with smaller ids; NaN lies below all.
uint64_t search_key(float score, int64_t id) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 becomes 0
  const uint32_t rank = std::isnan(score) ? 0 : (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{rank} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
float score_of(uint64_t key) {
  const auto rank = static_cast<uint32_t>(key >> 32);
  return std::bit_cast<float>((rank >> 31) != 0 ? rank ^ 0x80000000u : ~rank);
}
int32_t id_of(uint64_t key) { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key)); }

// What a thread has of a query: `count` keys, of which those from the first k on are thrown away as a list is
// full. What is below `least` is not among the k best.
struct ShortList {
  int64_t count = 0;
  uint64_t least = 0;
  float least_score = -std::numeric_limits<float>::infinity();  // or NaN: nothing is below

  void add(uint64_t* keys, uint64_t key, int64_t k, int64_t room) {
    if (key <= least) return;
    keys[count++] = key;
    if (count < room) return;
    std::nth_element(keys, keys + k - 1, keys + count, std::greater<>());
    count = k;
    least = keys[k - 1];
    least_score = score_of(least);
  }
};

// Where the workspace has what: [the matmul's][squares of the queries][lists, of a query side by side][their
// keys].
struct SearchPlan {
  int64_t rows;  // queries at once
  int64_t room;  // keys of a list
  int64_t squares_at, lists_at, keys_at, end;

  SearchPlan(const VectorSearch& op, int threads)
      : rows(row_block(std::max<int64_t>(op.queries.shape[0], 1), op.queries.shape[1], op.compute)),
        room(std::max<int64_t>(2 * op.scores.shape[1], 64)) {
    const auto up = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
    squares_at = up(static_cast<int64_t>(
        matmul_workspace_bytes(op.queries.shape[0], op.queries.shape[1], op.compute, threads)));
    lists_at = squares_at + up(op.queries.shape[0] * 4);
    const int64_t most = std::min(op.queries.shape[0], kRowBlock);  // never less for more queries
    keys_at = lists_at + up(most * threads * static_cast<int64_t>(sizeof(ShortList)));
    end = keys_at + most * threads * room * 8;
  }
};

// The scores of 32 rows of the table from the products: larger is better.
void to_scores(const VectorSearch& op, float square, int64_t first, int64_t count, float* products) {
  const float* squares = op.squares.as<float>() + first;
  for (int64_t n = 0; n < count; ++n) {
    const float distance = (square + squares[n]) - 2 * products[n];
    products[n] = distance < 0 ? 0.0f : -distance;
  }
}

float query_square(const VectorSearch& op, const float* query) {
  double sum = 0;
  for (int64_t k = 0; k < op.queries.shape[1]; ++k) {
    const double value = op.compute == Compute::kBF16 ? bf16_to_float(float_to_bf16(query[k])) : query[k];
    sum += value * value;
  }
  return static_cast<float>(sum);
}

}  // namespace

size_t CpuBackend::workspace_bytes(const VectorSearch& op) const {
  return static_cast<size_t>(SearchPlan(op, pool_.size()).end);
}

void CpuBackend::do_vector_search(const VectorSearch& op) {
  const int64_t batch = op.queries.shape[0], columns = op.queries.shape[1], k = op.scores.shape[1];
  if (batch == 0) return;
  const auto& table = static_cast<const CpuWeight&>(*op.table);
  const LinearKernels& kernels = linear_kernels(active_isa());
  const int threads = pool_.size();
  const SearchPlan plan(op, threads);
  auto* workspace = op.workspace.as<std::byte>();
  auto* squares = reinterpret_cast<float*>(workspace + plan.squares_at);
  auto* lists = reinterpret_cast<ShortList*>(workspace + plan.lists_at);
  auto* keys = reinterpret_cast<uint64_t*>(workspace + plan.keys_at);
  const Activations activations = prepare(op.queries, table, op.compute, kernels, pool_, workspace);
  MatmulScratch* scratch = scratches(batch, columns, op.compute, workspace);
  const SampleKernels& select = choose(kSampleGeneric, kSampleAvx2, kSampleAvx512);
  const bool distances = op.metric == Metric::kL2;
  for (int64_t b = 0; distances && b < batch; ++b)
    squares[b] = query_square(op, op.queries.as<float>() + b * op.queries.stride[0]);

  const int64_t pairs = pair_count(table);
  for (int64_t first = 0; first < batch; first += plan.rows) {
    const int64_t rows = std::min(plan.rows, batch - first);
    std::fill_n(lists, rows * threads, ShortList());
    pool_.parallel_for(pairs, pair_grain(table, pairs, rows, threads),
                       [&](int64_t begin, int64_t end, int worker) {
                         for (int64_t i = begin; i < end; ++i) {
                           const PairOfGroups pair = find_pair(table, i);
                           const int64_t id = pair.column(), count = pair.columns();
                           multiply_pair(kernels, *pair.panels, panels_of(table, 0, pair), pair.groups,
                                         activations, first, rows, scratch[worker]);
                           for (int64_t t = 0; t < rows; ++t) {
                             float* scores = scratch[worker].sums.data() + t * kPair * kGroupRows;
                             if (distances) to_scores(op, squares[first + t], id, count, scores);
                             ShortList& list = lists[t * threads + worker];
                             if (select.largest(scores, count) < list.least_score)
                               continue;  // NaN is never the largest
                             uint64_t* own = keys + (t * threads + worker) * plan.room;
                             for (int64_t n = 0; n < count; ++n) {
                               if (!(scores[n] < list.least_score))
                                 list.add(own, search_key(scores[n], id + n), k, plan.room);
                             }
                           }
                         }
                       });
    pool_.parallel_for(rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        uint64_t* all = keys + t * threads * plan.room;
        int64_t count = 0;
        for (int64_t w = 0; w < threads; ++w) {
          const int64_t own = lists[t * threads + w].count;
          std::memmove(all + count, all + w * plan.room, static_cast<size_t>(own) * sizeof(uint64_t));
          count += own;
        }
        std::partial_sort(all, all + k, all + count, std::greater<>());
        float* scores = op.scores.as<float>() + (first + t) * op.scores.stride[0];
        int32_t* ids = op.ids.as<int32_t>() + (first + t) * op.ids.stride[0];
        for (int64_t j = 0; j < k; ++j) {
          const float score = score_of(all[j]);
          scores[j] = distances ? 0.0f - score : score;
          ids[j] = id_of(all[j]);
        }
      }
    });
  }
}

}  // namespace qiao::cpu
