// dropout: four elements a thread, whose draws are the four words of one block of Philox; one pass over
// memory, whose bandwidth limits it. Measured: docs/h200.md.
#include "backend/ops/dropout.h"

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/rows.h"
#include "backend/philox.h"

namespace qiao::cuda {
namespace {

struct DropoutArguments {
  Rows x, y;
  int64_t width;
  unsigned tiles;
  uint32_t threshold;
  float scale;
  uint64_t seed;
  uint32_t stream, first_row, first_column;
  bool add;
};

__global__ void dropout_kernel(DropoutArguments op) {
  begin_kernel();
  const Place place = place_of(op.tiles);
  if (place.at >= op.width) return;
  const uint32_t column = op.first_column + static_cast<uint32_t>(place.at);
  const auto block = [&](uint32_t number) {
    return philox4x32({number, op.first_row + static_cast<uint32_t>(place.row), op.stream, 0u}, op.seed);
  };
  auto words = block(column / 4);
  if (column % 4 != 0) {  // the four are of two blocks
    auto next = block(column / 4 + 1);
    for (uint32_t i = 0; i < column % 4; ++i) {  // no word is picked by number: all stay in registers
      words = {words[1], words[2], words[3], next[0]};
      next = {next[1], next[2], next[3], 0u};
    }
  }
  const auto kept = [&](uint32_t word, float x) { return word < op.threshold ? 0.0f : x * op.scale; };
  const float4 x = load_four(op.x.row(place.row), place.at, op.width, op.x.aligned);
  const float4 d =
      make_float4(kept(words[0], x.x), kept(words[1], x.y), kept(words[2], x.z), kept(words[3], x.w));
  float* y = op.y.row(place.row);
  store_four(y, place.at, op.width, op.y.aligned,
             op.add ? add(load_four(y, place.at, op.width, op.y.aligned), d) : d);
}

}  // namespace

void CudaBackend::do_dropout(const Dropout& op) {
  const int64_t width = op.y.shape[1];
  const Tiles tiles(op.y.shape[0], width);
  launch("dropout", stream_, dropout_kernel, tiles.grid, tiles.block, 0,
         DropoutArguments{rows_of(op.x), rows_of(op.y), width, tiles.tiles, op.threshold(), op.scale(),
                          op.seed, op.stream, op.first_row, op.first_column, op.add});
}

}  // namespace qiao::cuda
