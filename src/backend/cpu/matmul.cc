#include "backend/cpu/matmul.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace qiao::cpu {
namespace {

// Below this many elements waking the pool costs more than preparing the activations.
constexpr int64_t kSerialElements = 16384;

constexpr int64_t kRowTile = 4;  // rows of x that the kernels take at a time, at most

// Up to so many rows, F16 and BF16 weights are converted again for each tile of them.
constexpr int64_t kConvertedRows = 4;

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct Places {
  int64_t floats = 0, pairs = 0, meta = 0, f8_scales = 0, end = 0;
};
Places places(int64_t rows, int64_t columns, Compute compute) {
  Places p;
  if (compute == Compute::kQ8) {
    p.meta = rows * aligned(columns);
    p.end = p.meta + aligned(rows * (columns / kTile) * static_cast<int64_t>(sizeof(TileMeta)));
  } else if (compute == Compute::kBF16) {
    p.pairs = aligned(rows * columns * 4);
    p.end = p.pairs + rows * aligned(columns * 2);
  } else if (compute == Compute::kF8) {
    p.f8_scales = aligned(rows * columns * 4);
    p.end = p.f8_scales + aligned(rows * (columns / kF8Block) * 4);
  }
  return p;
}

// multiply_pair for a few rows: one group after the other, so that memory is read as one stream, the next
// chunk (or, at a panel's end, the next panel: it follows) being prefetched while this one is multiplied.
void multiply_packed(const LinearKernels& kernels, const CpuWeight::Panels& panels,
                     std::array<const std::byte*, kPair> panel, int groups, const Activations& a, int64_t row,
                     int64_t rows, MatmulScratch& scratch) {
  const auto d = static_cast<size_t>(panels.dtype);
  const FormatForm form = format_form(panels.dtype);
  DotPacked dot;
  dot.unpack_scales = kernels.scales[d];
  dot.scales = scratch.scales.data();
  dot.dots = reinterpret_cast<int32_t*>(scratch.quants.data());
  static_assert(sizeof scratch.quants >= sizeof(int32_t) * (kMaxChunk / kTile) * 2 * kRowTile * 16);
  dot.offset_shift = form.offset_shift;
  dot.rows = rows;
  dot.x_stride = a.quants_stride;
  dot.meta_stride = a.meta_stride;
  for (int g = 0; g < groups; ++g) {
    dot.chunk = panel[static_cast<size_t>(g)];
    dot.sums = scratch.sums.data() + g * 16;
    for (int64_t k = 0; k < a.columns; k += panels.chunk) {
      dot.elements = std::min(panels.chunk, a.columns - k);
      dot.x = a.quants + row * a.quants_stride + k;
      dot.meta = a.meta + row * a.meta_stride + k / kTile;
      const int64_t bytes = chunk_bytes(panels.dtype, dot.elements);
      // After a panel's last chunk comes the next panel's first.
      const int64_t left = a.columns - k - dot.elements;
      const int64_t next = std::min(panels.chunk, left > 0 ? left : a.columns);
      dot.ahead = dot.chunk + bytes;
      dot.ahead_bytes = chunk_bytes(panels.dtype, next);
      dot.ahead_scales = scales_offset(panels.dtype, next) / 64 * 64;
      dot.ahead_for_tile = (dot.ahead_bytes / (dot.elements / kTile) + 63) / 64 * 64;
      kernels.dot_packed[d](dot);
      dot.chunk += bytes;
    }
  }
}

// Unpacks a chunk of one group to the shared form; returns its quants.
const uint8_t* unpack(const LinearKernels& kernels, const CpuWeight::Panels& panels, const std::byte* chunk,
                      int64_t elements, int group, MatmulScratch& scratch) {
  const auto d = static_cast<size_t>(panels.dtype);
  const int floats = scale_floats(format_form(panels.dtype).family);
  kernels.scales[d](chunk, elements, kPair * floats, scratch.scales.data() + group * floats);
  if (kernels.quants[d] == nullptr) return reinterpret_cast<const uint8_t*>(chunk);
  uint8_t* quants = scratch.quants.data() + group * kMaxChunk * 16;
  kernels.quants[d](chunk, elements, quants);
  return quants;
}

// For many rows: each chunk is unpacked once to the L1 cache and multiplied with all of them.
void multiply_unpacked(const LinearKernels& kernels, const CpuWeight::Panels& panels,
                       std::array<const std::byte*, kPair> panel, int groups, const Activations& a,
                       int64_t row, int64_t rows, MatmulScratch& scratch) {
  const FormatForm form = format_form(panels.dtype);
  DotQ8 dot;
  dot.scales = scratch.scales.data();
  dot.groups = groups;
  dot.offset_shift = form.offset_shift;
  dot.rows = rows;
  dot.x_stride = a.quants_stride;
  dot.meta_stride = a.meta_stride;
  dot.sums = scratch.sums.data();
  for (int64_t k = 0; k < a.columns; k += panels.chunk) {
    const int64_t elements = std::min(panels.chunk, a.columns - k);
    const int64_t bytes = chunk_bytes(panels.dtype, elements);
    for (int g = 0; g < groups; ++g) {
      const auto at = static_cast<size_t>(g);
      dot.quants[at] = unpack(kernels, panels, panel[at], elements, g, scratch);
      panel[at] += bytes;
      // After a panel's last chunk comes the next pair's first, a panel on.
      dot.ahead[at] = k + elements < a.columns ? panel[at] : panel[at] + panels.panel_bytes;
    }
    dot.tiles = elements / kTile;
    dot.x = a.quants + row * a.quants_stride + k;
    dot.meta = a.meta + row * a.meta_stride + k / kTile;
    dot.ahead_bytes = bytes;
    dot.ahead_for_tile = (bytes / (dot.tiles * ((rows + kRowTile - 1) / kRowTile)) + 63) / 64 * 64;
    kernels.dot_q8[static_cast<size_t>(form.family)][static_cast<size_t>(form.width)](dot);
  }
}

DotFloat dot_float_of(const Activations& a, int groups, int64_t row, int64_t rows, MatmulScratch& scratch) {
  DotFloat dot;
  dot.groups = groups;
  dot.rows = rows;
  dot.x = a.floats + row * a.floats_stride;
  dot.x_stride = a.floats_stride;
  dot.sums = scratch.sums.data();
  for (int g = 0; g < kPair; ++g) {
    dot.weights[static_cast<size_t>(g)] = scratch.floats.data() + g * kMaxChunk * 16;
  }
  return dot;
}

// A chunk of one group of a block format, as F32 [elements][16].
void dequantize(const LinearKernels& kernels, const CpuWeight::Panels& panels, const std::byte* chunk,
                int64_t elements, int group, MatmulScratch& scratch) {
  if (panels.dtype == DType::kF8_128) {
    return kernels.f8_to_f32(chunk, f8_scales(chunk, elements), elements,
                             scratch.floats.data() + group * kMaxChunk * 16);
  }
  const FormatForm form = format_form(panels.dtype);
  const int floats = scale_floats(form.family);
  const int offset = has_minimum(form.family) ? 0 : 1 << form.offset_shift;
  const uint8_t* quants = unpack(kernels, panels, chunk, elements, group, scratch);
  kernels.dequantize[static_cast<size_t>(form.family)](quants, scratch.scales.data() + group * floats,
                                                       kPair * floats, elements / kTile, offset,
                                                       scratch.floats.data() + group * kMaxChunk * 16);
}

// Block formats as F32.
void multiply_dequantized(const LinearKernels& kernels, const CpuWeight::Panels& panels,
                          std::array<const std::byte*, kPair> panel, int groups, const Activations& a,
                          int64_t row, int64_t rows, MatmulScratch& scratch) {
  DotFloat dot = dot_float_of(a, groups, row, rows, scratch);
  for (int64_t k = 0; k < a.columns; k += panels.chunk) {
    const int64_t elements = std::min(panels.chunk, a.columns - k);
    for (int g = 0; g < groups; ++g) {
      const auto at = static_cast<size_t>(g);
      dequantize(kernels, panels, panel[at], elements, g, scratch);
      panel[at] += chunk_bytes(panels.dtype, elements);
    }
    dot.steps = elements;
    dot.x = a.floats + row * a.floats_stride + k;
    kernels.dot_f32(dot);
  }
}

// F8_128: block by block, so that what is unpacked of two groups stays in the L1 cache.
void multiply_f8(const LinearKernels& kernels, const CpuWeight::Panels& panels,
                 std::array<const std::byte*, kPair> panel, int groups, const Activations& a, int64_t row,
                 int64_t rows, MatmulScratch& scratch) {
  const bool values = a.compute != Compute::kF8;
  DotFloat dot = dot_float_of(a, groups, row, rows, scratch);
  dot.steps = kF8Block;
  if (!values) dot.sums = scratch.blocks.data();
  AddF8Block add;
  add.groups = groups;
  add.rows = rows;
  add.x_stride = a.columns / kF8Block;
  add.blocks = scratch.blocks.data();
  add.sums = scratch.sums.data();
  for (int64_t k = 0; k < a.columns; k += panels.chunk) {
    const int64_t elements = std::min(panels.chunk, a.columns - k);
    for (int64_t block = 0; block < elements; block += kF8Block) {
      for (int g = 0; g < groups; ++g) {
        const auto at = static_cast<size_t>(g);
        add.scales[at] = f8_scales(panel[at], elements) + block / kF8Block * kGroupRows;
        kernels.f8_to_f32(panel[at] + block * kGroupRows, values ? add.scales[at] : nullptr, kF8Block,
                          scratch.floats.data() + g * kMaxChunk * 16);
      }
      dot.x = a.floats + row * a.floats_stride + k + block;
      if (!values)
        std::memset(scratch.blocks.data(), 0, static_cast<size_t>(rows) * kPair * 16 * sizeof(float));
      kernels.dot_f32(dot);
      if (values) continue;
      add.x_scales = a.f8_scales + row * add.x_stride + (k + block) / kF8Block;
      kernels.add_f8_block(add);
    }
    for (const std::byte*& at : panel) at += chunk_bytes(panels.dtype, elements);
  }
}

// F8_128 with a few rows, in kF8 or its values: read as it is, two groups side by side.
void multiply_f8_few(const LinearKernels& kernels, const CpuWeight::Panels& panels,
                     std::array<const std::byte*, kPair> panel, int groups, const Activations& a, int64_t row,
                     int64_t rows, MatmulScratch& scratch) {
  const auto kernel = a.compute == Compute::kF8 ? kernels.dot_f8 : kernels.dot_f8_values;
  DotF8 dot;
  dot.groups = groups;
  dot.rows = rows;
  dot.x_stride = a.floats_stride;
  dot.x_scales = nullptr;
  dot.x_scales_stride = a.columns / kF8Block;
  dot.sums = scratch.sums.data();
  for (int64_t k = 0; k < a.columns; k += panels.chunk) {
    dot.elements = std::min(panels.chunk, a.columns - k);
    dot.x = a.floats + row * a.floats_stride + k;
    if (a.compute == Compute::kF8) dot.x_scales = a.f8_scales + row * dot.x_scales_stride + k / kF8Block;
    dot.chunks = panel;
    for (size_t g = 0; g < panel.size(); ++g) {
      panel[g] += chunk_bytes(panels.dtype, dot.elements);
      // After a panel's last chunk comes the next pair's first, a panel on.
      dot.ahead[g] = k + dot.elements < a.columns ? panel[g] : panel[g] + panels.panel_bytes;
    }
    kernel(dot);
  }
}

// F32, F16 and BF16. A few rows read F16 and BF16 as they are; many have them converted once.
void multiply_plain(const LinearKernels& kernels, const CpuWeight::Panels& panels,
                    std::array<const std::byte*, kPair> panel, int groups, const Activations& a, int64_t row,
                    int64_t rows, MatmulScratch& scratch) {
  const bool few = rows <= kConvertedRows;
  const bool by_pairs =
      panels.dtype == DType::kBF16 && a.compute == Compute::kBF16 && kernels.dot_bf16 != nullptr;
  DotFloat dot = dot_float_of(a, groups, row, rows, scratch);
  for (int64_t k = 0; k < a.columns; k += panels.chunk) {
    const int64_t elements = std::min(panels.chunk, a.columns - k);
    const float* floats = a.floats + row * a.floats_stride + k;
    const auto as_they_are = [&](void (*kernel)(const DotFloat&), int64_t steps, const void* x,
                                 int64_t stride) {
      for (size_t g = 0; g < static_cast<size_t>(groups); ++g) dot.weights[g] = panel[g];
      dot.steps = steps;
      dot.x = x;
      dot.x_stride = stride;
      kernel(dot);
    };
    if (by_pairs) {
      as_they_are(kernels.dot_bf16, (elements + 1) / 2, a.pairs + row * a.pairs_stride + k,
                  a.pairs_stride / 2);
    } else if (panels.dtype == DType::kF32) {
      as_they_are(kernels.dot_f32, elements, floats, a.floats_stride);
    } else if (few && panels.dtype == DType::kF16) {
      as_they_are(kernels.dot_f16, elements, floats, a.floats_stride);
    } else if (few && elements % 2 == 0 && a.floats_stride % 2 == 0) {
      as_they_are(kernels.dot_bf16_f32, elements / 2, floats, a.floats_stride / 2);
    } else {
      const auto convert = panels.dtype == DType::kF16 ? kernels.f16_to_f32 : kernels.bf16_to_f32;
      for (int g = 0; g < groups; ++g) {
        float* to = scratch.floats.data() + g * kMaxChunk * 16;
        convert(panel[static_cast<size_t>(g)], elements, to);
        dot.weights[static_cast<size_t>(g)] = to;
      }
      dot.steps = elements;
      dot.x = floats;
      dot.x_stride = a.floats_stride;
      kernels.dot_f32(dot);
    }
    for (int g = 0; g < groups; ++g) panel[static_cast<size_t>(g)] += chunk_bytes(panels.dtype, elements);
  }
}

}  // namespace

const float* floats_of(const LinearKernels& kernels, const CpuWeight::Panels& panels, const std::byte* chunk,
                       int64_t elements, MatmulScratch& scratch) {
  if (panels.dtype == DType::kF32) return reinterpret_cast<const float*>(chunk);
  if (traits(panels.dtype).quantized) {
    dequantize(kernels, panels, chunk, elements, 0, scratch);
  } else {
    (panels.dtype == DType::kF16 ? kernels.f16_to_f32 : kernels.bf16_to_f32)(chunk, elements,
                                                                             scratch.floats.data());
  }
  return scratch.floats.data();
}

size_t matmul_workspace_bytes(int64_t rows, int64_t columns, Compute compute, int threads) {
  return static_cast<size_t>(places(rows, columns, compute).end) +
         sizeof(MatmulScratch) * static_cast<size_t>(threads);
}

MatmulScratch* scratches(int64_t rows, int64_t columns, Compute compute, std::byte* workspace) {
  return reinterpret_cast<MatmulScratch*>(workspace + places(rows, columns, compute).end);
}

Activations prepare(const Tensor& x, const CpuWeight& weight, Compute compute, const LinearKernels& kernels,
                    ThreadPool& pool, std::byte* workspace) {
  const int64_t rows = x.shape[0], columns = x.shape[1];
  Activations a;
  a.compute = compute;
  a.columns = columns;
  a.floats = x.as<float>();
  a.floats_stride = x.stride[0];
  if (compute == Compute::kF32) return a;

  const Places p = places(rows, columns, compute);
  const auto each_row = [&](auto&& body) {
    const int64_t grain = std::max<int64_t>(1, kSerialElements / columns);
    pool.parallel_for(rows, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) body(t, x.as<float>() + t * x.stride[0]);
    });
  };
  if (compute == Compute::kQ8) {
    auto* quants = reinterpret_cast<int8_t*>(workspace);
    auto* meta = reinterpret_cast<TileMeta*>(workspace + p.meta);
    a.quants = quants;
    a.quants_stride = aligned(columns);
    a.meta = meta;
    a.meta_stride = columns / kTile;
    each_row([&](int64_t t, const float* row) {
      kernels.quantize(row, columns, quants + t * a.quants_stride, meta + t * a.meta_stride);
    });
    return a;
  }
  if (compute == Compute::kF8) {
    auto* numbers = reinterpret_cast<float*>(workspace);
    auto* scales = reinterpret_cast<float*>(workspace + p.f8_scales);
    a.floats = numbers;
    a.floats_stride = columns;
    a.f8_scales = scales;
    each_row([&](int64_t t, const float* row) {
      kernels.quantize_f8(row, columns, numbers + t * columns, scales + t * (columns / kF8Block));
    });
    return a;
  }
  bool any_pairs = false, any_floats = false;
  for (const CpuWeight::Panels& panels : weight.panels()) {
    (panels.dtype == DType::kBF16 && kernels.dot_bf16 != nullptr ? any_pairs : any_floats) = true;
  }
  auto* floats = reinterpret_cast<float*>(workspace);
  auto* pairs = reinterpret_cast<uint16_t*>(workspace + p.pairs);
  a.floats = floats;
  a.floats_stride = columns;
  a.pairs = pairs;
  a.pairs_stride = aligned(columns * 2) / 2;
  each_row([&](int64_t t, const float* row) {
    if (any_floats) kernels.round_bf16(row, columns, floats + t * columns);
    if (any_pairs) kernels.pack_bf16(row, columns, pairs + t * a.pairs_stride);
  });
  return a;
}

void multiply_pair(const LinearKernels& kernels, const CpuWeight::Panels& panels,
                   std::array<const std::byte*, kPair> panel, int groups, const Activations& activations,
                   int64_t row, int64_t rows, MatmulScratch& scratch) {
  QIAO_ASSERT(rows <= kRowBlock);
  std::memset(scratch.sums.data(), 0, static_cast<size_t>(rows) * kPair * 16 * sizeof(float));
  if (!traits(panels.dtype).quantized) {
    multiply_plain(kernels, panels, panel, groups, activations, row, rows, scratch);
  } else if (panels.dtype == DType::kF8_128) {
    const int64_t few = activations.compute == Compute::kF8 ? kernels.f8_rows : kernels.f8_value_rows;
    const auto multiply = rows <= few ? multiply_f8_few : multiply_f8;
    multiply(kernels, panels, panel, groups, activations, row, rows, scratch);
  } else if (activations.compute != Compute::kQ8) {
    multiply_dequantized(kernels, panels, panel, groups, activations, row, rows, scratch);
  } else if (rows <= kernels.packed_rows[static_cast<size_t>(panels.dtype)]) {
    multiply_packed(kernels, panels, panel, groups, activations, row, rows, scratch);
  } else {
    multiply_unpacked(kernels, panels, panel, groups, activations, row, rows, scratch);
  }
}

int64_t pair_count(const CpuWeight& weight) {
  int64_t pairs = 0;
  for (const CpuWeight::Panels& p : weight.panels()) pairs += (p.groups + 1) / kPair;
  return pairs;
}

PairOfGroups find_pair(const CpuWeight& weight, int64_t index) {
  for (const CpuWeight::Panels& p : weight.panels()) {
    const int64_t pairs = (p.groups + 1) / kPair;
    if (index < pairs) {
      const int64_t group = index * kPair;
      return {&p, group, static_cast<int>(std::min<int64_t>(kPair, p.groups - group))};
    }
    index -= pairs;
  }
  QIAO_ASSERT(false && "pair out of range");
  return {};
}

int64_t pair_of_row(const CpuWeight& weight, int64_t row) {
  int64_t before = 0;
  for (const CpuWeight::Panels& p : weight.panels()) {
    if (row < p.first_row + p.rows) return before + (row - p.first_row) / (kPair * kGroupRows);
    before += (p.groups + 1) / kPair;
  }
  QIAO_ASSERT(false && "row out of range");
  return 0;
}

}  // namespace qiao::cpu
