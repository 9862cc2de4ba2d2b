// gather, gather_rows and gather_backward. Each thread has four elements of a row; limited by the memory's
// bandwidth. The way back adds the rows of one id up without atomics, in ascending order: the block of an
// id's first place finds the others and adds them all, those of its later places have nothing to do.
#include "backend/ops/gather.h"

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/rows.h"
#include "backend/cuda/weight.h"
#include "backend/cuda/weight_rows.h"

namespace qiao::cuda {
namespace {

// `table`: rows of one dtype, from `first` on; ids of others are left to their own launch.
__global__ void gather_kernel(WeightRows table, int64_t first, const int32_t* ids, float by, Rows out,
                              unsigned tiles) {
  begin_kernel();
  const Place place = place_of(tiles);
  if (place.at >= table.columns) return;
  const int64_t id = ids[place.row] - first;
  if (id < 0 || id >= table.rows) return;
  store_four(out.row(place.row), place.at, table.columns, out.aligned,
             scale(by, weight_four(table, id, place.at)));
}

__global__ void gather_rows_kernel(Rows x, const int32_t* rows, Rows out, int64_t width, unsigned tiles) {
  begin_kernel();
  const Place place = place_of(tiles);
  if (place.at >= width) return;
  store_four(out.row(place.row), place.at, width, out.aligned,
             load_four(x.row(rows[place.row]), place.at, width, x.aligned));
}

constexpr int kSearchThreads = 256;

__global__ void __launch_bounds__(kSearchThreads)
    gather_backward_kernel(const int32_t* ids, int64_t count, float by, Rows dout, Rows dtable, int64_t width,
                           unsigned tiles) {
  begin_kernel();
  const Place place = place_of(tiles);
  const int32_t id = ids[place.row];
  bool is_first = true;
  for (int64_t i = threadIdx.x; i < place.row; i += kSearchThreads) is_first = is_first && ids[i] != id;
  if (__syncthreads_or(!is_first)) return;
  QIAO_SHARED(uint32_t, found, kSearchThreads / 32);
  const bool mine = place.at < width;
  float* to = dtable.row(id);
  float4 sum = mine ? load_four(to, place.at, width, dtable.aligned) : make_float4(0, 0, 0, 0);
  for (int64_t begin = place.row; begin < count; begin += kSearchThreads) {
    const int64_t i = begin + threadIdx.x;
    const uint32_t bits = __ballot_sync(kAllLanes, i < count && ids[i] == id);
    if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = bits;
    __syncthreads();
    for (int w = 0; w < kSearchThreads / 32; ++w) {
      for (uint32_t left = found[w]; left != 0 && mine; left &= left - 1) {
        const int64_t row = begin + 32 * w + __ffs(static_cast<int>(left)) - 1;
        sum = add_scaled(by, load_four(dout.row(row), place.at, width, dout.aligned), sum);
      }
    }
    __syncthreads();
  }
  if (mine) store_four(to, place.at, width, dtable.aligned, sum);
}

}  // namespace

void CudaBackend::do_gather(const Gather& op) {
  const auto& table = static_cast<const CudaWeight&>(*op.table);
  const Tiles tiles(op.out.shape[0], table.columns());
  for (size_t i = 0; i < table.panels().size(); ++i) {
    launch("gather", stream_, gather_kernel, tiles.grid, tiles.block, 0, table.rows_of(0, i),
           table.panels()[i].first_row, op.ids.as<int32_t>(), op.scale, rows_of(op.out), tiles.tiles);
  }
}

void CudaBackend::do_gather_rows(const GatherRows& op) {
  const int64_t width = op.out.shape[1];
  const Tiles tiles(op.out.shape[0], width);
  launch("gather_rows", stream_, gather_rows_kernel, tiles.grid, tiles.block, 0, rows_of(op.x),
         op.rows.as<int32_t>(), rows_of(op.out), width, tiles.tiles);
}

void CudaBackend::do_gather_backward(const GatherBackward& op) {
  const int64_t count = op.dout.shape[0], width = op.dtable.shape[1];
  const auto tiles = static_cast<unsigned>(ceil_div(width, 4 * kSearchThreads));
  launch("gather_backward", stream_, gather_backward_kernel, static_cast<unsigned>(count * tiles),
         kSearchThreads, 0, op.ids.as<int32_t>(), count, op.scale, rows_of(op.dout), rows_of(op.dtable),
         width, tiles);
}

}  // namespace qiao::cuda
