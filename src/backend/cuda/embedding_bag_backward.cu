// The way back of embedding_bag. Plan: the places are sorted by id (blocks sort runs in shared memory, which
// are merged two by two, each key finding its place by itself), so that what meets one row of the table is a
// bag of rows of dout, added up as forward (embedding_bag.cu) and without atomics; a row that very many
// places meet is cut where a stretch of kStretch sorted places ends, and its parts are added up at last. How
// many rows are met is known to the device alone: blocks beyond end at once.
#include <utility>

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/embedding_bag.h"
#include "backend/cuda/sample_cut.h"
#include "backend/ops/embedding_bag.h"

namespace qiao::cuda {
namespace {

constexpr int64_t kSortedRun = 2048;  // keys that a block sorts
constexpr uint32_t kNoId = 0xffffffffu;

// The way back's arguments and workspace. Keys are turned round, ~(id, place), for sort_descending to give
// ids and places in ascending order; those of places without part have kNoId, behind all others.
struct BagGradients {
  const int32_t *ids, *offsets;
  const float* weights;
  int64_t places, bags, rows;
  bool mean;
  int32_t* bag_of;  // [places]; -1: none
  float* shares;    // [bags]: 1 / the bag's rows, of a mean
  Whole *keys, *other_keys;
  int32_t *starts, *run_ids;  // of the places that meet one row, as they are sorted: [met + 1], [met]
  int32_t* met;
  int64_t stretches;
  int32_t* stretch_runs;  // [stretches]
  int64_t stretch_width;
  float* stretch_sums;
  int32_t* of_rows;  // [places], sorted: the row of dout, and what it is multiplied with
  float* factors;
  int32_t* row_ids;  // the op's, or null
  size_t bytes;

  BagGradients(const EmbeddingBagBackward& op, bool placed)
      : ids(op.ids.as<int32_t>()),
        offsets(op.offsets.as<int32_t>()),
        weights(op.weights.present() ? op.weights.as<float>() : nullptr),
        places(op.ids.shape[0]),
        bags(op.dout.shape[0]),
        rows(op.table.shape[0]),
        mean(op.mean),
        stretches(ceil_div(op.ids.shape[0], kStretch)),
        stretch_width(ceil_div(op.table.shape[1], 4) * 4),
        row_ids(op.row_ids.present() ? op.row_ids.as<int32_t>() : nullptr),
        bytes(0) {
    std::byte* base = placed ? op.workspace.as<std::byte>() : nullptr;
    const auto take = [&](auto*& pointer, int64_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + bytes);
      bytes += static_cast<size_t>(ceil_div(count * static_cast<int64_t>(sizeof *pointer), 256) * 256);
    };
    take(keys, places), take(other_keys, places);
    take(bag_of, places), take(shares, bags);
    take(starts, places + 1), take(run_ids, places), take(met, 1);
    take(of_rows, places), take(factors, places);
    take(stretch_runs, stretches), take(stretch_sums, stretches * stretch_width);
  }
};

__device__ inline uint32_t id_of_key(Whole key) { return static_cast<uint32_t>(~key >> 32); }
__device__ inline int64_t place_of_key(Whole key) { return static_cast<int64_t>(~key & 0xffffffffu); }

// A thread a place: its bag, the last that begins at it or before, and its key.
__global__ void __launch_bounds__(kBagThreads) find_bags(BagGradients op) {
  begin_kernel();
  const int64_t i = int64_t{blockIdx.x} * kBagThreads + threadIdx.x;
  if (i >= op.places) return;
  int64_t low = 0, high = op.bags + 1;  // offsets that begin at i or before: their number
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (op.offsets[middle] <= i) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const int64_t id = op.ids[i];
  const bool has = low >= 1 && low <= op.bags && id >= 0 && id < op.rows;
  op.bag_of[i] = has ? static_cast<int32_t>(low - 1) : -1;
  op.keys[i] = ~(Whole{has ? static_cast<uint32_t>(id) : kNoId} << 32 | static_cast<Whole>(i));
}

// A warp a bag.
__global__ void __launch_bounds__(kBagThreads) find_shares(BagGradients op) {
  begin_kernel();
  const int64_t bag = int64_t{blockIdx.x} * (kBagThreads / 32) + threadIdx.x / 32;
  if (bag >= op.bags) return;
  const auto [begin, end] = bag_places(op.offsets, bag, op.places);
  int members = 0;
  for (int64_t base = begin; base < end; base += 32) {
    const int64_t i = base + threadIdx.x % 32;
    members += __popc(__ballot_sync(kAllLanes, i < end && op.ids[i] >= 0 && op.ids[i] < op.rows));
  }
  if (threadIdx.x % 32 == 0) op.shares[bag] = members > 0 ? 1.0f / static_cast<float>(members) : 0.0f;
}

__global__ void __launch_bounds__(kCutThreads) sort_runs(Whole* keys, int64_t count) {
  begin_kernel();
  QIAO_SHARED(Whole, own, kSortedRun);
  const int64_t first = int64_t{blockIdx.x} * kSortedRun;
  const int64_t here = count - first < kSortedRun ? count - first : kSortedRun;
  for (int64_t i = threadIdx.x; i < here; i += kCutThreads) own[i] = keys[first + i];
  __syncthreads();
  sort_descending(own, here);
  for (int64_t i = threadIdx.x; i < here; i += kCutThreads) keys[first + i] = own[i];
}

// Sorted runs two by two: a key goes behind those of its own run before it and the other's larger ones.
__global__ void __launch_bounds__(kBagThreads)
    merge_runs(const Whole* keys, Whole* merged, int64_t count, int64_t run) {
  begin_kernel();
  const int64_t i = int64_t{blockIdx.x} * kBagThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t own = i / run * run, other = (i / run ^ 1) * run;
  const int64_t end = other + run < count ? other + run : count;
  const Whole key = keys[i];
  int64_t low = other, high = end;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys[middle] > key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const int64_t larger = low > other ? low - other : 0;
  merged[(own < other ? own : other) + (i - own) + larger] = key;
}

// Whether a row's places begin at sorted place p.
struct SortedPlace {
  uint32_t id;
  bool begins;
};
__device__ inline SortedPlace sorted_place(const Whole* keys, int64_t p, int64_t places) {
  const uint32_t id = p < places ? id_of_key(keys[p]) : kNoId;
  return {id, id != kNoId && (p == 0 || id_of_key(keys[p - 1]) != id)};
}

// How many rows begin in each stretch.
__global__ void __launch_bounds__(kStretch) count_runs(BagGradients op, const Whole* keys) {
  begin_kernel();
  const int64_t p = int64_t{blockIdx.x} * kStretch + threadIdx.x;
  const int count = __syncthreads_count(sorted_place(keys, p, op.places).begins);
  if (threadIdx.x == 0) op.stretch_runs[blockIdx.x] = count;
}

// Of each thread of a block of kStretch, what those before it have of `count`; *all: the sum.
__device__ inline int counts_before(int count, int* of_warp, int* all) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  int until = count;
#pragma unroll
  for (unsigned lanes = 1; lanes < 32; lanes *= 2) {
    const int other = __shfl_up_sync(kAllLanes, until, lanes);
    if (lane >= static_cast<int>(lanes)) until += other;
  }
  if (lane == 31) of_warp[warp] = until;
  __syncthreads();
  int before = until - count;
  *all = 0;
  for (int w = 0; w < kStretch / 32; ++w) {
    if (w < warp) before += of_warp[w];
    *all += of_warp[w];
  }
  __syncthreads();
  return before;
}

// Those of the stretches before, in their place. One block.
__global__ void __launch_bounds__(kStretch) add_run_counts(BagGradients op) {
  begin_kernel();
  QIAO_SHARED(int, of_warp, kStretch / 32);
  int before = 0;
  for (int64_t base = 0; base < op.stretches; base += kStretch) {
    const int64_t q = base + threadIdx.x;
    int all = 0;
    const int own = counts_before(q < op.stretches ? op.stretch_runs[q] : 0, of_warp, &all);
    if (q < op.stretches) op.stretch_runs[q] = before + own;
    before += all;
  }
  if (threadIdx.x == 0) *op.met = before, op.starts[0] = 0;
}

// Where each row's places begin, and behind the last row's their end.
__global__ void __launch_bounds__(kStretch) find_runs(BagGradients op, const Whole* keys) {
  begin_kernel();
  QIAO_SHARED(int, of_warp, kStretch / 32);
  const int64_t p = int64_t{blockIdx.x} * kStretch + threadIdx.x;
  const SortedPlace place = sorted_place(keys, p, op.places);
  int all = 0;
  const int run = op.stretch_runs[blockIdx.x] + counts_before(place.begins ? 1 : 0, of_warp, &all);
  if (place.begins) {
    op.starts[run] = static_cast<int32_t>(p);
    op.run_ids[run] = static_cast<int32_t>(place.id);
  }
  const bool is_last = place.id != kNoId && (p == op.places - 1 || id_of_key(keys[p + 1]) == kNoId);
  if (is_last) op.starts[*op.met] = static_cast<int32_t>(p + 1);
}

__global__ void __launch_bounds__(kBagThreads) deal_places(BagGradients op, const Whole* keys) {
  begin_kernel();
  const int64_t p = int64_t{blockIdx.x} * kBagThreads + threadIdx.x;
  if (p >= op.places) return;
  if (op.row_ids != nullptr) op.row_ids[p] = p < *op.met ? op.run_ids[p] : -1;
  if (p >= op.starts[*op.met]) return;
  const int64_t place = place_of_key(keys[p]);
  const int32_t bag = op.bag_of[place];
  op.of_rows[p] = bag;
  op.factors[p] = op.weights != nullptr ? op.weights[place] : op.mean ? op.shares[bag] : 1.0f;
}

// A warp a place.
template <DType kType>
__global__ void __launch_bounds__(kBagThreads)
    weight_gradients(BagTable table, const int32_t* ids, const int32_t* bag_of, int64_t places, Rows dout,
                     float* dweights) {
  begin_kernel();
  const int64_t i = int64_t{blockIdx.x} * (kBagThreads / 32) + threadIdx.x / 32;
  if (i >= places) return;
  const int64_t bag = bag_of[i];
  float sum = 0;
  for (int64_t at = 4 * (threadIdx.x % 32); bag >= 0 && at < table.columns; at += 128) {
    const float4 a = load_four(dout.row(bag), at, table.columns, dout.aligned);
    const float4 b = table_four<kType>(table, ids[i], at);
    sum = fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) dweights[i] = sum;
}

constexpr const char* kBackName = "embedding_bag_backward";

// Returns where the sorted keys are.
const Whole* sort_keys(const Stream& stream, const BagGradients& op) {
  launch(kBackName, stream, sort_runs, blocks_for(op.places, kSortedRun), kCutThreads, 0, op.keys, op.places);
  Whole *from = op.keys, *to = op.other_keys;
  for (int64_t run = kSortedRun; run < op.places; run *= 2) {
    launch(kBackName, stream, merge_runs, blocks_for(op.places, kBagThreads), kBagThreads, 0, from, to,
           op.places, run);
    std::swap(from, to);
  }
  return from;
}

}  // namespace

size_t CudaBackend::workspace_bytes(const EmbeddingBagBackward& op) const {
  return BagGradients(op, false).bytes;
}

void CudaBackend::do_embedding_bag_backward(const EmbeddingBagBackward& op) {
  const BagGradients gradients(op, true);
  const int64_t places = gradients.places;
  if (places == 0) return;
  const unsigned blocks = blocks_for(places, kBagThreads);
  launch(kBackName, stream_, find_bags, blocks, kBagThreads, 0, gradients);
  if (op.dweights.present()) {
    const auto kernel = op.table.dtype == DType::kF32   ? weight_gradients<DType::kF32>
                        : op.table.dtype == DType::kF16 ? weight_gradients<DType::kF16>
                                                        : weight_gradients<DType::kBF16>;
    launch(kBackName, stream_, kernel, blocks_for(places, kBagThreads / 32), kBagThreads, 0,
           bag_table(op.table), gradients.ids, gradients.bag_of, places, rows_of(op.dout),
           op.dweights.as<float>());
  }
  if (!op.dtable.present() && !op.drows.present()) return;
  if (op.mean) {
    launch(kBackName, stream_, find_shares, blocks_for(gradients.bags, kBagThreads / 32), kBagThreads, 0,
           gradients);
  }
  const Whole* keys = sort_keys(stream_, gradients);
  const auto stretches = static_cast<unsigned>(gradients.stretches);
  launch(kBackName, stream_, count_runs, stretches, kStretch, 0, gradients, keys);
  launch(kBackName, stream_, add_run_counts, 1, kStretch, 0, gradients);
  launch(kBackName, stream_, find_runs, stretches, kStretch, 0, gradients, keys);
  launch(kBackName, stream_, deal_places, blocks, kBagThreads, 0, gradients, keys);
  Bags bags = {};
  bags.table = bag_table(op.dout);
  bags.ids = gradients.of_rows, bags.offsets = gradients.starts, bags.weights = gradients.factors;
  bags.places = bags.bags = places, bags.bag_count = gradients.met;
  bags.stretch_runs = gradients.stretch_runs, bags.stretch_sums = gradients.stretch_sums;
  bags.stretches = gradients.stretches, bags.stretch_width = gradients.stretch_width;
  if (op.dtable.present()) {
    bags.out = rows_of(op.dtable), bags.out_rows = gradients.run_ids, bags.add = true;
    launch_bags(kBackName, stream_, DType::kF32, bags);
  }
  if (op.drows.present()) {
    bags.out = rows_of(op.drows), bags.out_rows = nullptr, bags.add = false;
    launch_bags(kBackName, stream_, DType::kF32, bags);
  }
}

}  // namespace qiao::cuda
