// dx = dy W and dw += dy^T x. Plan: the sum's dimension is cut into runs of kDepth; of each run one operand
// (W or x) is packed into panels as wide as a tile, once, by all threads; then threads take blocks of the
// result, each walked in slices, so that a panel's slice stays in the L1 cache while the
// tiles of a block pass over it. An element's sum goes on from what memory holds of it, so its order is that
// of n, or of t, alone. In kBF16 and kF8 what was packed is rounded, and dy's part of a run is packed too:
// the rest is the same; kF8 multiplies what is dequantized, and of dx its runs end with segments, so that
// they are whole blocks of dy. The kernel and its limit are in linear_backward_inl.h.
#include "backend/cpu/linear_backward.h"

#include <algorithm>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/linear_backward_inl.h"
#include "backend/cpu/simd_generic.h"

namespace qiao::cpu {

const LinearBackwardKernels kLinearBackwardGeneric = linear_backward_kernels<generic::Simd>();

const LinearBackwardKernels& gradient_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512Bf16) return kLinearBackwardAvx512Bf16;
  if (isa >= Isa::kAvx512) return kLinearBackwardAvx512;
  if (isa == Isa::kAvx2) return kLinearBackwardAvx2;
#endif
  static_cast<void>(isa);
  return kLinearBackwardGeneric;
}

namespace {

constexpr int64_t kDepth = 512;     // steps packed at a time, whole blocks of kF8
constexpr int64_t kSlice = 5120;    // numbers of a panel, steps by columns, that the L1 cache holds
constexpr int64_t kBlockRows = 96;  // rows of dx a thread takes
constexpr int64_t kDwRows = 48;     // rows of dw a thread takes: their dy is packed
constexpr int64_t kMostPanel = 64;

// What one thread needs.
struct GradientScratch {
  MatmulScratch matmul;
  alignas(64) std::array<float, static_cast<size_t>(kDwRows* kDepth)> dy, rounded;
};

int64_t packed_bytes(int64_t tokens, int64_t rows, int64_t columns) {
  const int64_t depth = std::min(kDepth, std::max(tokens, rows));
  const int64_t padded = (columns + kMostPanel - 1) / kMostPanel * kMostPanel;
  return depth * padded * static_cast<int64_t>(sizeof(float));
}

// Of kBF16 and kF8: a run of dy's columns.
int64_t rounded_bytes(int64_t tokens, int64_t rows, Compute compute) {
  const int64_t bytes = tokens * std::min(kDepth, rows) * static_cast<int64_t>(sizeof(float));
  return compute == Compute::kF32 ? 0 : (bytes + 63) / 64 * 64;
}

// Steps of a product over `depth` numbers of the sum.
int64_t steps_of(const GradientContext& context, int64_t depth) {
  const int64_t each = context.compute == Compute::kBF16 ? context.kernels.bf16_steps : 1;
  return (depth + each - 1) / each;
}

// The groups of 16 rows that make a run of at most kDepth rows.
struct GroupRun {
  const CpuWeight::Panels* panels;  // of the first group
  int64_t group;                    // in it
  int64_t groups, rows;
};

// body(panels, group, row): `groups` groups from run's first on, with the run's row each begins at.
template <typename Body>
void each_group(const GroupRun& run, Body body) {
  const CpuWeight::Panels* panels = run.panels;
  int64_t group = run.group, row = 0;
  for (int64_t i = 0; i < run.groups; ++i, ++group) {
    for (; group >= panels->groups; ++panels) group -= panels->groups;
    body(i, *panels, group, row);
    row += std::min(kGroupRows, panels->rows - group * kGroupRows);
  }
}

// From row `row` of the weight, which begins a group, `left` rows at most, in kF8 of one segment.
GroupRun group_run(const CpuWeight& weight, int64_t row, int64_t left, Compute compute) {
  GroupRun run{weight.panels().data(), 0, 0, 0};
  while (row >= run.panels->first_row + run.panels->rows) ++run.panels;
  run.group = (row - run.panels->first_row) / kGroupRows;
  const CpuWeight::Panels* panels = run.panels;
  if (compute == Compute::kF8) left = std::min(left, panels->first_row + panels->rows - row);
  for (int64_t group = run.group; run.rows < left; ++group, ++run.groups) {
    if (group == panels->groups) ++panels, group = 0;
    const int64_t rows = std::min(kGroupRows, panels->rows - group * kGroupRows);
    if (run.rows + rows > kDepth) break;
    run.rows += rows;
  }
  return run;
}

// W's rows of the run, as panels [column / panel][rows][panel].
void pack_weight(const WeightRows& part, const GroupRun& run, const GradientContext& context, float* packed,
                 GradientScratch* scratch) {
  const CpuWeight& weight = part.weight;
  const LinearBackwardKernels& kernels = context.kernels;
  context.pool.parallel_for(run.groups, 1, [&](int64_t begin, int64_t end, int worker) {
    each_group(run, [&](int64_t i, const CpuWeight::Panels& panels, int64_t group, int64_t row) {
      if (i < begin || i >= end) return;
      const std::byte* chunk = weight.panel(part.expert, panels, group);
      const int64_t rows = std::min(kGroupRows, panels.rows - group * kGroupRows);
      for (int64_t k = 0; k < weight.columns(); k += panels.chunk) {
        const int64_t elements = std::min(panels.chunk, weight.columns() - k);
        const float* floats = floats_of(context.linear, panels, chunk, elements, scratch[worker].matmul);
        kernels.pack_group(floats, elements, k, rows, run.rows, packed + row * kernels.panel);
        chunk += chunk_bytes(panels.dtype, elements);
      }
    });
  });
}

// Rows [from, from + depth) of x, as panels [column / panel][depth][panel].
void pack_rows(const Tensor& x, int64_t from, int64_t depth, const GradientContext& context, float* packed) {
  const int64_t columns = x.shape[1], panel = context.kernels.panel;
  context.pool.parallel_for(depth, row_grain(columns), [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; ++s) {
      const float* row = x.as<float>() + (from + s) * x.stride[0];
      context.kernels.pack_row(row, columns, depth, packed + s * panel);
    }
  });
}

// Panels of `depth` rows to what kBF16 or kF8 multiplies.
void round_panels(int64_t columns, int64_t depth, const GradientContext& context, float* packed) {
  const int64_t panel = context.kernels.panel, panels = (columns + panel - 1) / panel;
  const auto round_rows =
      context.compute == Compute::kF8 ? context.kernels.round_rows_f8 : context.kernels.round_rows;
  context.pool.parallel_for(panels, row_grain(depth * panel), [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p) {
      float* at = packed + p * depth * panel;
      round_rows(at, panel, depth, panel, at);
    }
  });
}

// One panel's columns of a block of rows: `product` holds all but its slice and its tile.
void multiply_block(const GradientContext& context, TileProduct product, int64_t rows, int64_t a_tile) {
  const LinearBackwardKernels& kernels = context.kernels;
  const auto multiply = context.compute == Compute::kBF16 ? kernels.multiply_bf16 : kernels.multiply;
  const TileProduct whole = product;
  const int64_t slice = kSlice / kernels.panel;
  for (int64_t s = 0; s < whole.steps; s += slice) {
    product.steps = std::min(slice, whole.steps - s);
    product.b = whole.b + s * kernels.panel;
    product.add = whole.add || s > 0;
    for (int64_t r = 0; r < rows; r += kernels.tile_rows) {
      product.rows = std::min(kernels.tile_rows, rows - r);
      product.a = whole.a + r / kernels.tile_rows * a_tile + s * whole.a_step;
      product.c = whole.c + r * whole.c_stride;
      multiply(product);
    }
  }
}

struct GradientPlaces {
  float *packed, *rounded;
  GradientScratch* scratch;
};
GradientPlaces gradient_places(int64_t tokens, int64_t rows, int64_t columns,
                               const GradientContext& context) {
  std::byte* rounded = context.workspace + packed_bytes(tokens, rows, columns);
  return {reinterpret_cast<float*>(context.workspace), reinterpret_cast<float*>(rounded),
          reinterpret_cast<GradientScratch*>(rounded + rounded_bytes(tokens, rows, context.compute))};
}

}  // namespace

size_t gradient_workspace_bytes(int64_t tokens, int64_t rows, int64_t columns, Compute compute, int threads) {
  return static_cast<size_t>(packed_bytes(tokens, rows, columns) + rounded_bytes(tokens, rows, compute)) +
         sizeof(GradientScratch) * static_cast<size_t>(threads);
}

void input_gradient(const Tensor& dy, const WeightRows& weight, const Tensor& dx, bool add,
                    const GradientContext& context) {
  const int64_t tokens = dy.shape[0], width = dy.shape[1], columns = dx.shape[1];
  if (tokens == 0) return;
  const LinearBackwardKernels& kernels = context.kernels;
  const GradientPlaces place = gradient_places(tokens, width, columns, context);
  const int64_t panels = (columns + kernels.panel - 1) / kernels.panel;
  const int64_t blocks = (tokens + kBlockRows - 1) / kBlockRows;
  for (int64_t n = 0; n < width;) {
    const GroupRun run = group_run(weight.weight, weight.first + n, width - n, context.compute);
    pack_weight(weight, run, context, place.packed, place.scratch);
    const float* a = dy.as<float>() + n;
    int64_t a_row = dy.stride[0];
    const int64_t steps = steps_of(context, run.rows);
    if (context.compute != Compute::kF32) {
      const bool f8 = context.compute == Compute::kF8;
      // W is BF16 as it is: it need but be paired.
      if (!f8 && kernels.bf16_steps > 1) round_panels(columns, run.rows, context, place.packed);
      context.pool.parallel_for(tokens, row_grain(run.rows), [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t)
          (f8 ? kernels.round_row_f8 : kernels.round_row)(a + t * a_row, run.rows, place.rounded + t * steps);
      });
      a = place.rounded, a_row = steps;
    }
    context.pool.parallel_for(panels * blocks, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t column = i % panels * kernels.panel, t = i / panels * kBlockRows;
        TileProduct product{};
        product.a = a + t * a_row;
        product.a_row = a_row;
        product.a_step = 1;
        product.b = place.packed + column * run.rows;
        product.steps = steps;
        product.columns = std::min(kernels.panel, columns - column);
        product.c = dx.as<float>() + t * dx.stride[0] + column;
        product.c_stride = dx.stride[0];
        product.add = add || n > 0;
        multiply_block(context, product, std::min(kBlockRows, tokens - t), kernels.tile_rows * a_row);
      }
    });
    n += run.rows;
  }
}

void weight_gradient(const Tensor& dy, const Tensor& x, float* dw, const GradientContext& context) {
  const int64_t tokens = dy.shape[0], width = dy.shape[1], columns = x.shape[1];
  const LinearBackwardKernels& kernels = context.kernels;
  const GradientPlaces place = gradient_places(tokens, width, columns, context);
  const int64_t panels = (columns + kernels.panel - 1) / kernels.panel;
  const int64_t blocks = (width + kDwRows - 1) / kDwRows;
  // Blocks are cut across, too, where there are few: each piece packs their dy again.
  const int64_t pieces = std::clamp<int64_t>((8 * context.pool.size() + blocks - 1) / blocks, 1, panels);
  for (int64_t t = 0; t < tokens; t += kDepth) {
    const int64_t depth = std::min(kDepth, tokens - t);
    const int64_t steps = steps_of(context, depth);
    pack_rows(x, t, depth, context, place.packed);
    if (context.compute != Compute::kF32) round_panels(columns, depth, context, place.packed);
    context.pool.parallel_for(blocks * pieces, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / pieces * kDwRows, piece = i % pieces;
        const int64_t rows = std::min(kDwRows, width - n), tile = kernels.tile_rows;
        // dy^T as tiles [rows / tile][steps][tile].
        float* a = place.scratch[worker].dy.data();
        const float* from = dy.as<float>() + t * dy.stride[0] + n;
        if (context.compute != Compute::kF32) {
          float* rounded = place.scratch[worker].rounded.data();
          (context.compute == Compute::kF8 ? kernels.round_rows_f8 : kernels.round_rows)(
              from, dy.stride[0], depth, rows, rounded);
          kernels.pack_tiles(rounded, rows, steps, rows, a);
        } else {
          kernels.pack_tiles(from, dy.stride[0], depth, rows, a);
        }
        for (int64_t p = piece * panels / pieces; p < (piece + 1) * panels / pieces; ++p) {
          const int64_t column = p * kernels.panel;
          TileProduct product{};
          product.a = a;
          product.a_row = 1;
          product.a_step = tile;
          product.b = place.packed + column * depth;
          product.steps = steps;
          product.columns = std::min(kernels.panel, columns - column);
          product.c = dw + n * columns + column;
          product.c_stride = columns;
          product.add = true;
          multiply_block(context, product, rows, tile * steps);
        }
      }
    });
  }
}

size_t linear_backward_workspace_bytes(const LinearBackward& op, int threads) {
  return gradient_workspace_bytes(op.dy.shape[0], op.weight->rows(), op.weight->columns(), op.compute,
                                  threads);
}

void run_linear_backward(const LinearBackward& op, const LinearKernels& linear,
                         const LinearBackwardKernels& kernels, ThreadPool& pool) {
  const GradientContext context{linear, kernels, pool, op.workspace.as<std::byte>(), op.compute};
  const auto& weight = static_cast<const CpuWeight&>(*op.weight);
  if (op.dx.present()) input_gradient(op.dy, {weight}, op.dx, op.add_dx, context);
  if (op.dw.present()) weight_gradient(op.dy, op.x, op.dw.as<float>(), context);
  if (!op.dbias.present()) return;
  constexpr int64_t kBiasColumns = 256;
  pool.parallel_for(op.dbias.shape[0], kBiasColumns, [&](int64_t begin, int64_t end, int) {
    float* dbias = op.dbias.as<float>();
    for (int64_t t = 0; t < op.dy.shape[0]; ++t) {
      const float* dy = op.dy.as<float>() + t * op.dy.stride[0];
      for (int64_t n = begin; n < end; ++n) dbias[n] += dy[n];
    }
  });
}

size_t CpuBackend::workspace_bytes(const LinearBackward& op) const {
  return linear_backward_workspace_bytes(op, pool_.size());
}

void CpuBackend::do_linear_backward(const LinearBackward& op) {
  run_linear_backward(op, linear_kernels(active_isa()), gradient_kernels(active_isa()), pool_);
}

}  // namespace qiao::cpu
