// embedding_bag and its way back. Plan: each thread has four columns of one bag and asks memory for kAtOnce
// of its rows before it adds the first; a block has as many bags as their columns leave room for. One pass
// over the rows that are met, limited by the memory's bandwidth. Back, the places are sorted by id (blocks
// sort runs in shared memory, which are merged two by two, each key finding its place by itself), so that
// what meets one row of the table is a bag of rows of dout, added up as forward and without atomics. How many
// rows are met is known to the device alone: blocks beyond end at once.
#include "backend/ops/embedding_bag.h"

#include <algorithm>

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/rows.h"
#include "backend/cuda/sample_cut.h"
#include "backend/cuda/weight_rows.h"

namespace qiao::cuda {
namespace {

constexpr int kBagThreads = 256;
constexpr int kFindRunThreads = 1024;
constexpr int64_t kSortedRun = 2048;  // keys that a block sorts
constexpr uint32_t kNoId = 0xffffffffu;

// Rows of F32, F16 or BF16.
struct BagTable {
  const void* data;
  int64_t stride, rows, columns;
  bool aligned;  // four elements from a multiple of 4 on are one load
};

BagTable bag_table(const Tensor& rows) {
  const int64_t four = 4 * traits(rows.dtype).block_bytes;
  return {
      rows.data, rows.stride[0], rows.shape[0], rows.shape[1],
      reinterpret_cast<uintptr_t>(rows.data) % static_cast<uintptr_t>(four) == 0 && rows.stride[0] % 4 == 0};
}

// Elements at to at + 3 of a row; zeros beyond its end.
template <DType kType>
__device__ inline float4 table_four(const BagTable& table, int64_t row, int64_t at) {
  if constexpr (kType == DType::kF32) {
    return load_four(static_cast<const float*>(table.data) + row * table.stride, at, table.columns,
                     table.aligned);
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(table.data) + row * table.stride + at;
    uint2 words;
    if (table.aligned && at + 4 <= table.columns) {
      words = *reinterpret_cast<const uint2*>(from);
    } else {
      const auto bits = [&](int i) { return at + i < table.columns ? uint32_t{from[i]} : 0u; };
      words = make_uint2(bits(0) | bits(1) << 16, bits(2) | bits(3) << 16);
    }
    const float2 a = unpack_two<kType>(words.x), b = unpack_two<kType>(words.y);
    return make_float4(a.x, a.y, b.x, b.y);
  }
}

struct Bags {
  BagTable table;
  const int32_t *ids, *offsets;
  const float* weights;  // null: 1 each
  int64_t places, bags;
  const int32_t* bag_count;  // of those, on the device; null: all
  Rows out;
  const int32_t* out_rows;  // of a bag; null: its own number
  bool mean, add;
  int lanes;  // threads of a bag, a power of two
  unsigned tiles;
};

// A bag's places, whatever its offsets are.
struct BagPlaces {
  int64_t begin, end;
};
__device__ inline BagPlaces bag_places(const int32_t* offsets, int64_t bag, int64_t places) {
  const auto inside = [&](int64_t least, int64_t offset) {
    return offset < least ? least : offset < places ? offset : places;
  };
  const int64_t begin = inside(0, offsets[bag]);
  return {begin, inside(begin, offsets[bag + 1])};
}

template <DType kType>
__global__ void __launch_bounds__(kBagThreads) bag_kernel(Bags op) {
  begin_kernel();
  constexpr int kAtOnce = 4;
  const int64_t group = int64_t{blockIdx.x / op.tiles} * (kBagThreads / op.lanes) + threadIdx.x / op.lanes;
  const int64_t at = 4 * (int64_t{blockIdx.x % op.tiles} * op.lanes + threadIdx.x % op.lanes);
  const int64_t width = op.table.columns;
  if (at >= width || group >= (op.bag_count == nullptr ? op.bags : int64_t{*op.bag_count})) return;
  const auto [begin, end] = bag_places(op.offsets, group, op.places);
  float* to = op.out.row(op.out_rows == nullptr ? group : int64_t{op.out_rows[group]});
  float4 sum = op.add ? load_four(to, at, width, op.out.aligned) : make_float4(0, 0, 0, 0);
  int64_t members = 0;
  for (int64_t i = begin; i < end; i += kAtOnce) {
    float4 four[kAtOnce];
    float by[kAtOnce];
    bool has[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int64_t id = i + j < end ? op.ids[i + j] : -1;
      has[j] = id >= 0 && id < op.table.rows;
      by[j] = op.weights != nullptr && has[j] ? op.weights[i + j] : 1.0f;
      four[j] = has[j] ? table_four<kType>(op.table, id, at) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (!has[j]) continue;
      sum = add_scaled(by[j], four[j], sum);
      ++members;
    }
  }
  if (op.mean && members > 1) {
    const auto count = static_cast<float>(members);
    sum = make_float4(sum.x / count, sum.y / count, sum.z / count, sum.w / count);
  }
  store_four(to, at, width, op.out.aligned, sum);
}

void launch_bags(const char* name, const Stream& stream, DType dtype, Bags op) {
  op.lanes = 1;
  while (op.lanes < kBagThreads && 4 * op.lanes < op.table.columns) op.lanes *= 2;
  op.tiles = static_cast<unsigned>(ceil_div(op.table.columns, 4 * op.lanes));
  const auto blocks = static_cast<unsigned>(ceil_div(op.bags, kBagThreads / op.lanes) * op.tiles);
  const auto kernel = dtype == DType::kF32   ? bag_kernel<DType::kF32>
                      : dtype == DType::kF16 ? bag_kernel<DType::kF16>
                                             : bag_kernel<DType::kBF16>;
  launch(name, stream, kernel, blocks, kBagThreads, 0, op);
}

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

// Where each row's places begin. One block: it reads a key of eight bytes where rows of dout have some
// hundred.
__global__ void __launch_bounds__(kFindRunThreads) find_runs(BagGradients op, const Whole* keys) {
  begin_kernel();
  QIAO_SHARED(int, found, kFindRunThreads / 32);
  QIAO_SHARED(int, of_warp, kFindRunThreads / 32);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  int runs = 0, members = 0;
  for (int64_t base = 0; base < op.places; base += kFindRunThreads) {
    const int64_t p = base + threadIdx.x;
    const uint32_t id = p < op.places ? id_of_key(keys[p]) : kNoId;
    const bool begins = id != kNoId && (p == 0 || id_of_key(keys[p - 1]) != id);
    const uint32_t bits = __ballot_sync(kAllLanes, begins), all = __ballot_sync(kAllLanes, id != kNoId);
    if (lane == 0) found[warp] = __popc(bits), of_warp[warp] = __popc(all);
    __syncthreads();
    int run = runs;
    for (int w = 0; w < kFindRunThreads / 32; ++w) {
      if (w < warp) run += found[w];
      runs += found[w];
      members += of_warp[w];
    }
    if (begins) {
      run += __popc(bits & ((1u << lane) - 1));
      op.starts[run] = static_cast<int32_t>(p);
      op.run_ids[run] = static_cast<int32_t>(id);
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  op.starts[runs] = members;
  *op.met = runs;
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

void CudaBackend::do_embedding_bag(const EmbeddingBag& op) {
  Bags bags = {};
  bags.table = bag_table(op.table);
  bags.ids = op.ids.as<int32_t>(), bags.offsets = op.offsets.as<int32_t>();
  if (op.weights.present()) bags.weights = op.weights.as<float>();
  bags.places = op.ids.shape[0], bags.bags = op.out.shape[0];
  bags.out = rows_of(op.out), bags.mean = op.mean;
  launch_bags("embedding_bag", stream_, op.table.dtype, bags);
}

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
  launch(kBackName, stream_, find_runs, 1, kFindRunThreads, 0, gradients, keys);
  launch(kBackName, stream_, deal_places, blocks, kBagThreads, 0, gradients, keys);
  Bags bags = {};
  bags.table = bag_table(op.dout);
  bags.ids = gradients.of_rows, bags.offsets = gradients.starts, bags.weights = gradients.factors;
  bags.places = bags.bags = places, bags.bag_count = gradients.met;
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
