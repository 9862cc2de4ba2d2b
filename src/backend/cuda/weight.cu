// Weights to their tiles and back. Plan: bytes of the file come to the device as they are, some rows at a
// time; a thread for each byte puts it where it belongs (scattered writes inside a tile of a few KB, which
// meet in the L2 cache). An upload is limited by the link to the host, which is far slower. Measured:
// docs/h200.md.
#include "backend/cuda/weight.h"

#include <algorithm>

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/instructions.h"
#include "backend/cuda/kernel.h"
#include "backend/ops/common.h"
#include "tensor/half.h"

namespace qiao::cuda {
namespace {

constexpr int64_t kChunkBytes = int64_t{64} << 20;  // of rows as the file has them, at a time

int64_t ceil_to(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Rows of a panel as the file has them.
struct FileRows {
  uint8_t* bytes;
  int64_t row_bytes;
  int64_t first;  // in the panel
  int64_t rows;
};

__device__ uint8_t* tile_byte(const WeightRows& w, const TileLayout& layout, int64_t row, int64_t byte) {
  // A plain dtype's block is padded to what a tile takes of a row: the file's bytes follow each other all the
  // same.
  const int64_t unit = byte / layout.block_bytes;
  const int inside =
      layout.position(static_cast<int>(row % kTileRows), static_cast<int>(byte % layout.block_bytes));
  return const_cast<uint8_t*>(w.tiles) + (row / kTileRows * w.units + unit) * layout.bytes() + inside;
}

template <bool kToTiles>
__global__ void __launch_bounds__(256) weight_move(WeightRows w, TileLayout layout, FileRows file) {
  begin_kernel();
  const int64_t count = file.rows * file.row_bytes, step = int64_t{gridDim.x} * 256;
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += step) {
    uint8_t* in_tile = tile_byte(w, layout, file.first + i / file.row_bytes, i % file.row_bytes);
    if (kToTiles) {
      *in_tile = file.bytes[i];
    } else {
      file.bytes[i] = *in_tile;
    }
  }
}

// values [N, K] of the weight, of which the panel's rows begin at `first`.
__global__ void __launch_bounds__(256)
    weight_write(WeightRows w, TileLayout layout, const float* values, int64_t first) {
  begin_kernel();
  const int64_t count = w.rows * w.columns, step = int64_t{gridDim.x} * 256;
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += step) {
    const int64_t row = i / w.columns, k = i % w.columns;
    const float value = values[(first + row) * w.columns + k];
    if (w.dtype == DType::kF32) {
      *reinterpret_cast<float*>(tile_byte(w, layout, row, 4 * k)) = value;
    } else {
      const unsigned short bits = w.dtype == DType::kF16 ? __half_as_ushort(__float2half_rn(value))
                                                         : __bfloat16_as_ushort(__float2bfloat16_rn(value));
      *reinterpret_cast<unsigned short*>(tile_byte(w, layout, row, 2 * k)) = bits;
    }
  }
}

__device__ float by_bf16(float value) { return __bfloat162float(__float2bfloat16_rn(value)); }

// As quantize_f8_of_bf16 (tensor/fp8.h): a block of threads has 128 rows of a segment, which begins at row
// `first` of the weight and at row `to` of the panel, by 128 columns.
__global__ void __launch_bounds__(256)
    weight_write_f8(WeightRows w, const float* values, int64_t first, int64_t to, int64_t rows) {
  begin_kernel();
  QIAO_SHARED(float, parts, 8);
  constexpr int kBlock = static_cast<int>(kF8Block);
  const int64_t unit = blockIdx.x % w.units, begin = blockIdx.x / w.units * kBlock;
  const auto count = static_cast<int>(rows - begin < kBlock ? rows - begin : kBlock);
  const int four = static_cast<int>(threadIdx.x % 32) * 4, warp = static_cast<int>(threadIdx.x / 32);
  const float* from = values + (first + begin) * w.columns + unit * kBlock + four;
  float most = 0;  // of what is a number
  for (int r = warp; r < count; r += 8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) most = fmaxf(most, fabsf(by_bf16(from[r * w.columns + i])));
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, lanes));
  if (threadIdx.x % 32 == 0) parts[warp] = most;
  __syncthreads();
  for (int i = 0; i < 8; ++i) most = fmaxf(most, parts[i]);
  const bool zero = most < kQ8Smallest;
  const float scale = zero ? 0.0f : most / kMostE4M3, inverse = zero ? 0.0f : kMostE4M3 / most;
  constexpr int kTileBytes = tile_layout(DType::kF8_128).bytes();
  for (int r = warp; r < count; r += 8) {
    uint32_t numbers = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      numbers |= uint32_t{e4m3_of(by_bf16(from[r * w.columns + i]) * inverse)} << (8 * i);
    const int64_t row = to + begin + r;
    const auto in_tile = static_cast<int>(row % kTileRows);
    uint8_t* tile = const_cast<uint8_t*>(w.tiles) + (row / kTileRows * w.units + unit) * kTileBytes;
    reinterpret_cast<uint32_t*>(tile)[f8_word(in_tile, four / 4)] = numbers;
    if (four == 0) reinterpret_cast<float*>(tile + kF8ScalesAt)[in_tile] = scale;
  }
}

std::vector<CudaWeight::Panel> panels_of(const std::vector<Weight::Segment>& segments, int64_t columns) {
  std::vector<CudaWeight::Panel> panels;
  for (const Weight::Segment& segment : segments) {
    if (panels.empty() || panels.back().dtype != segment.dtype) {
      const int64_t units = ceil_div(columns, tile_layout(segment.dtype).elements);
      panels.push_back({segment.dtype, segment.first_row, 0, units, 0, 0});
    }
    panels.back().rows += segment.rows;
  }
  size_t offset = 0;
  for (CudaWeight::Panel& panel : panels) {
    panel.offset = offset;
    const int64_t tiles = ceil_div(panel.rows, kTileRows) * panel.units;
    panel.bytes = static_cast<size_t>(ceil_to(tiles * tile_layout(panel.dtype).bytes(), 256));
    offset += panel.bytes;
  }
  return panels;
}

}  // namespace

CudaWeight::CudaWeight(const WeightSource& source, Buffer memory)
    : Weight(source), memory_(std::move(memory)), panels_(panels_of(segments(), columns())) {
  expert_bytes_ = panels_.back().offset + panels_.back().bytes;
}

size_t CudaWeight::bytes_for(const WeightSource& source) {
  std::vector<Segment> segments;
  const size_t parts = source.parts.size() / static_cast<size_t>(source.experts);
  for (size_t i = 0; i < parts; ++i) segments.push_back({source.parts[i].dtype, 0, source.parts[i].rows});
  const std::vector<Panel> panels = panels_of(segments, source.columns);
  return (panels.back().offset + panels.back().bytes) * static_cast<size_t>(source.experts);
}

WeightRows CudaWeight::rows_of(int64_t expert, size_t panel) const {
  const Panel& p = panels_[panel];
  const auto* memory = static_cast<const uint8_t*>(memory_.data());
  return {memory + static_cast<size_t>(expert) * expert_bytes_ + p.offset, p.dtype, p.rows, columns(),
          p.units};
}

CudaWeight::Place CudaWeight::place_of(size_t segment) const {
  const int64_t row = segments()[segment].first_row;
  size_t panel = 0;
  while (row >= panels_[panel].first_row + panels_[panel].rows) ++panel;
  return {panel, row - panels_[panel].first_row};
}

std::unique_ptr<Weight> CudaBackend::do_make_weight(const WeightSource& source) {
  Buffer memory = allocate(CudaWeight::bytes_for(source));
  QIAO_CUDA(cudaMemsetAsync(memory.data(), 0, memory.bytes(), stream_.handle()));
  auto weight = std::make_unique<CudaWeight>(source, std::move(memory));
  int64_t chunk = 0;
  for (const WeightPart& part : source.parts) {
    const int64_t bytes = row_bytes(part.dtype, source.columns);
    chunk = std::max(chunk, std::min(part.rows, std::max<int64_t>(1, kChunkBytes / bytes)) * bytes);
  }
  const Scratch staged(memory_, static_cast<size_t>(chunk));
  const size_t segments = weight->segments().size();
  for (size_t i = 0; i < source.parts.size(); ++i) {
    const WeightPart& part = source.parts[i];
    const CudaWeight::Place place = weight->place_of(i % segments);
    const WeightRows w = weight->rows_of(static_cast<int64_t>(i / segments), place.panel);
    FileRows file{staged.as<uint8_t>(), row_bytes(part.dtype, source.columns), place.row, 0};
    for (int64_t row = 0; row < part.rows; row += file.rows) {
      file.rows = std::min(part.rows - row, std::max<int64_t>(1, kChunkBytes / file.row_bytes));
      file.first = place.row + row;
      const int64_t bytes = file.rows * file.row_bytes;
      const std::byte* from = part.bytes + row * file.row_bytes;
      upload(file.bytes, from, static_cast<size_t>(bytes));
      launch("make_weight", stream_, weight_move<true>, blocks_for(bytes, 256), 256, 0, w,
             tile_layout(w.dtype), file);
      if (source.done_with) source.done_with(from, bytes);
    }
  }
  stream_.hold_next();
  return weight;
}

void CudaBackend::do_read_weight(const Weight& weight, int64_t expert, size_t segment, std::byte* bytes) {
  const auto& of_chip = static_cast<const CudaWeight&>(weight);
  const CudaWeight::Place place = of_chip.place_of(segment);
  const WeightRows w = of_chip.rows_of(expert, place.panel);
  const int64_t rows = weight.segments()[segment].rows;
  FileRows file{nullptr, row_bytes(w.dtype, w.columns), place.row, 0};
  const int64_t most = std::max<int64_t>(1, kChunkBytes / file.row_bytes);
  const Scratch staged(memory_, static_cast<size_t>(std::min(rows, most) * file.row_bytes));
  file.bytes = staged.as<uint8_t>();
  for (int64_t row = 0; row < rows; row += file.rows) {
    file.rows = std::min(rows - row, most);
    file.first = place.row + row;
    const int64_t count = file.rows * file.row_bytes;
    launch("read_weight", stream_, weight_move<false>, blocks_for(count, 256), 256, 0, w,
           tile_layout(w.dtype), file);
    download(bytes + row * file.row_bytes, file.bytes, static_cast<size_t>(count));
  }
}

void CudaBackend::do_write_weight(Weight& weight, int64_t expert, const Tensor& values) {
  const auto& of_chip = static_cast<const CudaWeight&>(weight);
  for (size_t i = 0; i < weight.segments().size(); ++i) {
    const Weight::Segment& segment = weight.segments()[i];
    if (segment.dtype != DType::kF8_128) continue;
    const CudaWeight::Place place = of_chip.place_of(i);
    const WeightRows w = of_chip.rows_of(expert, place.panel);
    launch("write_weight", stream_, weight_write_f8,
           static_cast<unsigned>(ceil_div(segment.rows, kF8Block) * w.units), 256, 0, w, values.as<float>(),
           segment.first_row, place.row, segment.rows);
  }
  for (size_t i = 0; i < of_chip.panels().size(); ++i) {
    const WeightRows w = of_chip.rows_of(expert, i);
    if (w.dtype == DType::kF8_128) continue;
    launch("write_weight", stream_, weight_write, blocks_for(w.rows * w.columns, 256), 256, 0, w,
           tile_layout(w.dtype), values.as<float>(), of_chip.panels()[i].first_row);
  }
  stream_.hold_next();
}

}  // namespace qiao::cuda
