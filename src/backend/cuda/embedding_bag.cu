// embedding_bag, and the sums of its way back. Plan: each thread has four columns of one bag and asks memory
// for kAtOnce of its rows before it adds the first; a block has as many bags as their columns leave room for.
// One pass over the rows that are met, limited by the memory's bandwidth.
#include "backend/cuda/embedding_bag.h"

#include "backend/cuda/cuda_class.h"
#include "backend/ops/embedding_bag.h"

namespace qiao::cuda {
namespace {

// Adds the rows of places [begin, end) to `sum`, ascending; returns how many the table has.
template <DType kType>
__device__ inline int64_t add_places(const Bags& op, int64_t begin, int64_t end, int64_t at, float4& sum) {
  constexpr int kAtOnce = 4;
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
  return members;
}

// Which bag a thread has, and its first column.
struct BagPlace {
  int64_t bag, at;
};
__device__ inline BagPlace bag_place(const Bags& op) {
  return {int64_t{blockIdx.x / op.tiles} * (kBagThreads / op.lanes) + threadIdx.x / op.lanes,
          4 * (int64_t{blockIdx.x % op.tiles} * op.lanes + threadIdx.x % op.lanes)};
}

template <DType kType>
__global__ void __launch_bounds__(kBagThreads) bag_kernel(Bags op) {
  begin_kernel();
  const auto [bag, at] = bag_place(op);
  const int64_t width = op.table.columns;
  if (at >= width || bag >= (op.bag_count == nullptr ? op.bags : int64_t{*op.bag_count})) return;
  const BagPlaces places = bag_places(op.offsets, bag, op.places);
  float* to = op.out.row(op.out_rows == nullptr ? bag : int64_t{op.out_rows[bag]});
  float4 sum = op.add ? load_four(to, at, width, op.out.aligned) : make_float4(0, 0, 0, 0);
  // What of a row's sum lies in other stretches is added later.
  const int64_t stretch_end = (places.begin / kStretch + 1) * kStretch;
  const int64_t end = op.stretch_runs != nullptr && places.end > stretch_end ? stretch_end : places.end;
  const int64_t members = add_places<kType>(op, places.begin, end, at, sum);
  if (op.mean && members > 1) {
    const auto count = static_cast<float>(members);
    sum = make_float4(sum.x / count, sum.y / count, sum.z / count, sum.w / count);
  }
  store_four(to, at, width, op.out.aligned, sum);
}

// Of stretch q of the sorted places, whether it begins inside a row's places, and which row that is.
struct Continued {
  bool is_one;
  int64_t run, begin, end;
};
__device__ inline Continued continued(const Bags& op, int64_t q) {
  const int64_t run = int64_t{op.stretch_runs[q]} - 1, begin = q * kStretch;
  if (run < 0) return {};
  const int64_t end = op.offsets[run + 1];
  return {op.offsets[run] < begin && begin < end, run, begin, end};
}

// The part of a row's sum in a stretch that it does not begin in.
__global__ void __launch_bounds__(kBagThreads) sum_stretches(Bags op) {
  begin_kernel();
  const auto [q, at] = bag_place(op);
  if (at >= op.table.columns || q >= op.stretches) return;
  const Continued row = continued(op, q);
  if (!row.is_one) return;
  float4 sum = make_float4(0, 0, 0, 0);
  add_places<DType::kF32>(op, row.begin, row.end < row.begin + kStretch ? row.end : row.begin + kStretch, at,
                          sum);
  *reinterpret_cast<float4*>(op.stretch_sums + q * op.stretch_width + at) = sum;
}

// All those parts of a row to its sum, ascending: by the first stretch that it goes on in.
__global__ void __launch_bounds__(kBagThreads) add_stretches(Bags op) {
  begin_kernel();
  const auto [first, at] = bag_place(op);
  const int64_t width = op.table.columns;
  if (at >= width || first >= op.stretches) return;
  const Continued row = continued(op, first);
  if (!row.is_one || op.offsets[row.run] / kStretch != first - 1) return;
  float* to = op.out.row(op.out_rows == nullptr ? row.run : int64_t{op.out_rows[row.run]});
  float4 sum = load_four(to, at, width, op.out.aligned);
  for (int64_t q = first; q * kStretch < row.end; ++q)
    sum = add(sum, *reinterpret_cast<const float4*>(op.stretch_sums + q * op.stretch_width + at));
  store_four(to, at, width, op.out.aligned, sum);
}

}  // namespace

void launch_bags(const char* name, const Stream& stream, DType dtype, Bags op) {
  op.lanes = 1;
  while (op.lanes < kBagThreads && 4 * op.lanes < op.table.columns) op.lanes *= 2;
  op.tiles = static_cast<unsigned>(ceil_div(op.table.columns, 4 * op.lanes));
  const auto blocks_of = [&](int64_t bags) {
    return static_cast<unsigned>(ceil_div(bags, kBagThreads / op.lanes) * op.tiles);
  };
  const auto kernel = dtype == DType::kF32   ? bag_kernel<DType::kF32>
                      : dtype == DType::kF16 ? bag_kernel<DType::kF16>
                                             : bag_kernel<DType::kBF16>;
  launch(name, stream, kernel, blocks_of(op.bags), kBagThreads, 0, op);
  if (op.stretch_runs == nullptr || op.stretches == 1) return;
  launch(name, stream, sum_stretches, blocks_of(op.stretches), kBagThreads, 0, op);
  launch(name, stream, add_stretches, blocks_of(op.stretches), kBagThreads, 0, op);
}

void CudaBackend::do_embedding_bag(const EmbeddingBag& op) {
  Bags bags = {};
  bags.table = bag_table(op.table);
  bags.ids = op.ids.as<int32_t>(), bags.offsets = op.offsets.as<int32_t>();
  if (op.weights.present()) bags.weights = op.weights.as<float>();
  bags.places = op.ids.shape[0], bags.bags = op.out.shape[0];
  bags.out = rows_of(op.out), bags.mean = op.mean;
  launch_bags("embedding_bag", stream_, op.table.dtype, bags);
}

}  // namespace qiao::cuda
