// The nearest rows of a table. Plan: some queries at a time, a piece of the table after the other: linear's
// products lie in the workspace (kScores of them, which stay in the L2 cache, or a part's) for one pass, in
// which a block a query and kPartRows rows of the table lists the k best as keys; a block a query then makes
// one list of those and of what it had. Keys are distinct and ordered, so nothing depends on which thread
// comes first. One pass over the table for kSearchQueries queries; limited by memory's bandwidth for few, by
// the products for many.
#include "backend/ops/vector_search.h"

#include <algorithm>

#include "backend/cuda/matmul_call.h"
#include "backend/cuda/sample_cut.h"

namespace qiao::cuda {
namespace {

constexpr int64_t kSearchQueries = 1024;
constexpr int64_t kPartRows = 16384;
constexpr int64_t kScores = int64_t{1} << 23;
constexpr int64_t kStage = 2 * kCutThreads;  // keys that are looked at between two looks at the list
constexpr int64_t kListRoom = kMostNeighbours + kStage;
static_assert(kListRoom <= 2 * kMostSorted);

struct SearchPass {
  const float* products;  // [queries, stride], of the table's rows from `first` on
  int64_t stride, first, rows, table_rows;
  int64_t parts, k;
  const float* squares;        // of the table's rows, or null: products are scores
  const float* query_squares;  // of the queries
  Whole* listed;               // [queries, parts, k]: 0 where there is none
  Whole* best;                 // [queries, k]: of the pieces before
  bool is_first, is_last;
  float* scores;
  int32_t* ids;
  int64_t scores_stride, ids_stride;
};

// The k largest of the keys key_at(0 … count - 1) above `least` to keys[0 …], sorted; returns how many there
// are. 0 is no key. The list is sorted as it is full, and what is below its k-th counts no more; before that,
// the k-th of the threads' largest keys is a first limit.
template <class KeyAt>
__device__ unsigned list_best(Whole* keys, unsigned* listed, int64_t count, int64_t k, Whole least,
                              KeyAt key_at) {
  if (k <= kCutThreads && count > kStage) {
    Whole largest = 0;
    for (int64_t i = threadIdx.x; i < count; i += kCutThreads) {
      const Whole key = key_at(i);
      largest = key > largest ? key : largest;
    }
    keys[threadIdx.x] = largest;
    __syncthreads();
    sort_descending(keys, kCutThreads);
    const Whole limit = keys[k - 1];
    if (limit > 0 && limit - 1 > least) least = limit - 1;
    __syncthreads();
  }
  if (threadIdx.x == 0) *listed = 0;
  __syncthreads();
  unsigned here = 0;
  for (int64_t base = 0; base < count; base += kStage) {
#pragma unroll
    for (int j = 0; j < static_cast<int>(kStage / kCutThreads); ++j) {
      const int64_t i = base + j * kCutThreads + threadIdx.x;
      const Whole key = i < count ? key_at(i) : 0;
      if (key > least) keys[atomicAdd(listed, 1u)] = key;
    }
    __syncthreads();
    here = *listed;
    if (here > kListRoom - kStage || base + kStage >= count) {
      sort_descending(keys, here);
      if (here >= k) here = static_cast<unsigned>(k), least = keys[k - 1];
      if (threadIdx.x == 0) *listed = here;
    }
    __syncthreads();
  }
  return here;
}

// A block has a query and a part of the piece.
__global__ void __launch_bounds__(kCutThreads) list_part(SearchPass op) {
  begin_kernel();
  QIAO_SHARED(Whole, keys, kListRoom);
  QIAO_SHARED(unsigned, listed, 1);
  const int64_t query = blockIdx.x / op.parts, part = blockIdx.x % op.parts, begin = part * kPartRows;
  const int64_t count = op.rows - begin < kPartRows ? op.rows - begin : kPartRows;
  const float* products = op.products + query * op.stride + begin;
  const bool distances = op.squares != nullptr;
  const float square = distances ? op.query_squares[query] : 0.0f;
  const Whole least = op.is_first ? 0 : op.best[query * op.k + op.k - 1];
  const unsigned here = list_best(keys, listed, count, op.k, least, [&](int64_t i) {
    const int64_t id = op.first + begin + i;
    float score = products[i];
    if (distances) {
      const float distance = (square + op.squares[id]) - 2 * score;
      score = distance < 0 ? 0.0f : -distance;
    }
    return key_of(score, id, op.table_rows + 1);
  });
  Whole* to = op.listed + (query * op.parts + part) * op.k;
  for (int64_t j = threadIdx.x; j < op.k; j += kCutThreads) to[j] = j < here ? keys[j] : 0;
}

// A block has a query: what it had and its parts' lists become one.
__global__ void __launch_bounds__(kCutThreads) join_parts(SearchPass op) {
  begin_kernel();
  QIAO_SHARED(Whole, keys, kListRoom);
  QIAO_SHARED(unsigned, listed, 1);
  const int64_t query = blockIdx.x, before = op.is_first ? 0 : op.k;
  Whole* best = op.best + query * op.k;
  const Whole* parts = op.listed + query * op.parts * op.k;
  const unsigned here = list_best(keys, listed, before + op.parts * op.k, op.k, 0,
                                  [&](int64_t i) { return i < before ? best[i] : parts[i - before]; });
  for (int64_t j = threadIdx.x; j < op.k; j += kCutThreads) {
    const Whole key = j < here ? keys[j] : 0;
    best[j] = key;
    if (!op.is_last) continue;
    const float score = z_of(key);
    op.scores[query * op.scores_stride + j] = op.squares != nullptr ? 0.0f - score : score;
    op.ids[query * op.ids_stride + j] = id_of(key, op.table_rows + 1);
  }
}

// A warp a query: its lanes load 32 columns at once, which each of them adds up in order.
__global__ void __launch_bounds__(32)
    square_queries(const float* queries, int64_t stride, int64_t columns, bool brain, float* squares) {
  begin_kernel();
  const int64_t query = blockIdx.x;
  double sum = 0;
  for (int64_t base = 0; base < columns; base += 32) {
    const int64_t c = base + threadIdx.x;
    float own = c < columns ? queries[query * stride + c] : 0.0f;
    if (brain) own = __bfloat162float(__float2bfloat16(own));
    for (int j = 0; j < 32; ++j) {
      const auto value = static_cast<double>(__shfl_sync(kAllLanes, own, j));
      sum += value * value;
    }
  }
  if (threadIdx.x == 0) squares[query] = static_cast<float>(sum);
}

// The workspace: [products of a piece][lists of its parts][the best so far][squares of the queries][the
// products' own].
struct SearchMemory {
  int64_t queries, piece;  // at once
  size_t listed_at, best_at, squares_at, products_at, bytes;

  explicit SearchMemory(const VectorSearch& op) {
    const int64_t k = op.scores.shape[1], whole = static_cast<int64_t>(sizeof(Whole));
    queries = std::min(op.queries.shape[0], kSearchQueries);
    piece = std::max(kPartRows, kScores / std::max<int64_t>(queries, 1) / kPartRows * kPartRows);
    piece = std::min(piece, op.table->rows());
    // Of any number of queries as many or fewer, whose pieces may be larger.
    const int64_t scores = std::min(queries * op.table->rows(), std::max(kScores, queries * kPartRows));
    const int64_t lists = scores / kPartRows + queries;
    const auto up = [](int64_t size) { return static_cast<size_t>(ceil_div(size, 256) * 256); };
    listed_at = up(scores * static_cast<int64_t>(sizeof(float)));
    best_at = listed_at + up(lists * k * whole);
    squares_at = best_at + up(queries * k * whole);
    products_at = squares_at + up(queries * static_cast<int64_t>(sizeof(float)));
    bytes = products_at + matmul_workspace_bytes(*op.table, op.compute, queries);
  }
};

}  // namespace

size_t CudaBackend::workspace_bytes(const VectorSearch& op) const { return SearchMemory(op).bytes; }

void CudaBackend::do_vector_search(const VectorSearch& op) {
  const SearchMemory memory(op);
  auto* base = op.workspace.as<std::byte>();
  const int64_t batch = op.queries.shape[0], rows = op.table->rows();
  for (int64_t first_query = 0; first_query < batch; first_query += kSearchQueries) {
    const int64_t queries = std::min(kSearchQueries, batch - first_query);
    const Tensor of = op.queries.slice(first_query, queries);
    const Tensor scores = op.scores.slice(first_query, queries), ids = op.ids.slice(first_query, queries);
    SearchPass pass = {};
    pass.table_rows = rows, pass.k = op.scores.shape[1];
    pass.listed = reinterpret_cast<Whole*>(base + memory.listed_at);
    pass.best = reinterpret_cast<Whole*>(base + memory.best_at);
    pass.scores = scores.as<float>(), pass.scores_stride = scores.stride[0];
    pass.ids = ids.as<int32_t>(), pass.ids_stride = ids.stride[0];
    if (op.metric == Metric::kL2) {
      auto* squares = reinterpret_cast<float*>(base + memory.squares_at);
      launch("vector_search", stream_, square_queries, static_cast<unsigned>(queries), 32, 0, of.as<float>(),
             of.stride[0], of.shape[1], op.compute == Compute::kBF16, squares);
      pass.squares = op.squares.as<float>(), pass.query_squares = squares;
    }
    for (int64_t first = 0; first < rows; first += memory.piece) {
      MatmulCall call;
      call.weight = static_cast<const CudaWeight*>(op.table);
      call.first_row = first, call.end_row = std::min(first + memory.piece, rows);
      call.compute = op.compute;
      call.x = of.as<float>(), call.x_stride = of.stride[0], call.tokens = queries;
      call.y = reinterpret_cast<float*>(base), call.y_stride = memory.piece;
      run_matmul(*this, call, base + memory.products_at);
      pass.products = call.y, pass.stride = call.y_stride;
      pass.first = first, pass.rows = call.end_row - first, pass.parts = ceil_div(pass.rows, kPartRows);
      pass.is_first = first == 0, pass.is_last = call.end_row == rows;
      launch("vector_search", stream_, list_part, static_cast<unsigned>(queries * pass.parts), kCutThreads, 0,
             pass);
      launch("vector_search", stream_, join_parts, static_cast<unsigned>(queries), kCutThreads, 0, pass);
    }
  }
}

}  // namespace qiao::cuda
