// linear and grouped_linear: which kernel, how K is cut, where scratch memory lies. The kernels and their
// plans are those of matmul.h.
#include "backend/ops/linear.h"

#include <algorithm>

#include "backend/cuda/matmul_call.h"

namespace qiao::cuda {
namespace {

// In a decode step each of the 16 warps on an H200's 132 multiprocessors has a row tile's segment, so many
// K is cut into; a constant, so that the sums are those of every chip.
constexpr int64_t kWantedUnits = 2112;
// Fewer blocks than that leave a device idle: then each segment has one of its own.
constexpr int64_t kFewBlocks = 396, kManyBlocks = 132, kMostSplitTokens = 1024;

int64_t segment_length(int64_t rows, int64_t columns) {
  const int64_t units = ceil_div(columns, kSegmentUnit);
  const int64_t wanted = std::clamp<int64_t>(kWantedUnits / ceil_div(rows, kTileRows), 1, units);
  return std::min(ceil_div(units, wanted), kMostSegment / kSegmentUnit) * kSegmentUnit;
}

// BackendOptions::fast: of as many segments at most as leave no multiprocessor without a block. Partial sums
// have room where they have it for segment_length's.
int64_t fast_segment_length(int64_t columns, int64_t segments, int64_t tiles, int multiprocessors) {
  const int64_t wanted = std::min(segments, ceil_div(multiprocessors, tiles));
  return ceil_div(ceil_div(columns, kSegmentUnit), wanted) * kSegmentUnit;
}

int64_t up(int64_t bytes) { return ceil_div(bytes, 256) * 256; }

int64_t prepared_columns(int64_t columns, Compute compute) {
  const int64_t stage = compute == Compute::kBF16 ? 64 : compute == Compute::kF8 ? kF8Block : 256;
  return ceil_div(columns, stage) * stage;
}

// Tiles of so many tokens at most, of kFewTokens each; 0 experts: all rows are of one.
int64_t few_tiles(int64_t tokens, int64_t experts) {
  return experts == 0 ? ceil_div(tokens, kFewTokens) : std::min(experts, tokens) + tokens / kFewTokens;
}

// Bytes of the partial sums of so many tokens or fewer. matmul_few.h: a place for each row tile of a launch.
// Gated, gate's and up's with the segments of both.
int64_t few_partial_bytes(int64_t rows, int64_t columns, int64_t tokens, int64_t experts, bool gated) {
  const int64_t sides = gated ? 2 : 1;
  const int64_t segments = sides * ceil_div(columns, segment_length(rows, columns));
  if (segments == 1) return 0;
  const int64_t row_tiles =
      ceil_div(rows / sides, kTileRows) * few_tiles(std::min(tokens, kFewTokens * experts), experts);
  return std::min<int64_t>(row_tiles, kMostTickets) * segments * kTileRows *
         std::min<int64_t>(tokens, kFewTokens) * static_cast<int64_t>(sizeof(float));
}

// The same of the kernels whose blocks may have one segment each.
int64_t split_partial_bytes(int64_t rows, int64_t columns, int64_t tokens, int64_t experts, bool f32) {
  const int64_t segments = ceil_div(columns, segment_length(rows, columns));
  const auto least_blocks = ceil_div(rows, kManyRows);
  if (segments == 1 || least_blocks >= kFewBlocks) return 0;
  const int64_t counted = std::min(tokens, kMostSplitTokens);
  const int64_t in_few = std::min(counted, kFewTokens * experts);
  const int64_t of_few = std::min(few_tiles(in_few, experts), ceil_div(kFewBlocks, least_blocks));
  const int64_t of_many =
      std::min(ceil_div(counted, kManyTokens) + experts, ceil_div(kManyBlocks, least_blocks));
  const int64_t few = f32 ? of_few * kFewTokens : 0;
  const int64_t many = tokens <= kFewTokens ? 0 : of_many * kManyTokens;
  return segments * least_blocks * kManyRows * std::max(few, many) * static_cast<int64_t>(sizeof(float));
}

bool has_wgmma(const CudaBackend& chip, Compute compute) {
  return (compute == Compute::kBF16 || compute == Compute::kF8) && chip.stream().compute_major() == 9;
}

// Experts with few rows each are a column of tiles each. One with more has two, and its weight is read twice:
// where wgmma has tiles of more tokens they are few up to half as many on average.
int64_t most_few(const CudaBackend& chip, Compute compute, int64_t experts) {
  return (experts > 1 && has_wgmma(chip, compute) ? kFewTokens / 2 : kFewTokens) * experts;
}

struct Prepared {
  int64_t bytes, meta_at, all;  // all: with the meta
};
Prepared prepared_of(const CudaWeight& weight, Compute compute, int64_t tokens) {
  if (compute == Compute::kF32) return {0, 0, 0};
  const int64_t columns = prepared_columns(weight.columns(), compute);
  if (compute == Compute::kBF16) {
    const int64_t all = up(ceil_div(tokens, 8) * 8 * columns * 2);  // as launch_prepare_wgmma's
    return {all, 0, all};
  }
  if (compute == Compute::kF8) {
    const int64_t bytes = up(ceil_div(tokens, 8) * 8 * columns);  // as launch_prepare_wgmma_f8's
    return {bytes, bytes, bytes + up(ceil_div(tokens, 8) * 8 * columns / kF8Block * 8)};
  }
  const int64_t bytes = up(tokens * columns);
  return {bytes, bytes,
          bytes + up(tokens * columns / kQ8Block * static_cast<int64_t>(sizeof(ActivationMeta)))};
}

}  // namespace

size_t matmul_workspace_bytes(const Weight& weight, Compute compute, int64_t tokens, bool gated) {
  const auto& of_chip = static_cast<const CudaWeight&>(weight);
  const bool f32 = compute == Compute::kF32;
  int64_t partial = 0;
  for (const CudaWeight::Panel& panel : of_chip.panels()) {
    const int64_t rows = panel.rows, columns = weight.columns(), experts = weight.experts();
    partial = std::max(partial, split_partial_bytes(rows, columns, tokens, experts, f32));
    if (!f32) partial = std::max(partial, few_partial_bytes(rows, columns, tokens, experts, gated));
    if (compute != Compute::kBF16 && compute != Compute::kF8) continue;
    const int64_t segments = ceil_div(columns, segment_length(rows, columns));
    partial = std::max(partial, wgmma_partial_bytes(rows, segments, tokens, experts, gated));
  }
  const int64_t prepared = tokens <= kFewTokens ? 0 : prepared_of(of_chip, compute, tokens).all;
  return static_cast<size_t>(prepared + partial);
}

int64_t matmul_gates_to(const CudaBackend& chip, const Weight& weight, Compute compute) {
  const auto& of_chip = static_cast<const CudaWeight&>(weight);
  // Gate's rows and up's are whole tiles, of one dtype.
  if (of_chip.panels().size() != 1 || weight.rows() % (2 * kTileRows) != 0) return 0;
  if (has_wgmma(chip, compute)) return INT64_MAX;
  const int64_t most = most_few(chip, compute, weight.experts());
  return compute != Compute::kF32 && few_tiles(most, weight.experts()) <= kMostTickets ? most : 0;
}

bool matmul_norms(const CudaBackend& chip, const Weight& weight, Compute compute) {
  return compute != Compute::kF32 && weight.columns() <= kMostNormedWidth &&
         chip.block_shared_bytes() >= kNormSharedBytes;
}

void run_matmul(const CudaBackend& chip, const MatmulCall& call, std::byte* workspace) {
  if (call.tokens == 0) return;
  const Stream& stream = chip.stream();
  const CudaWeight& weight = *call.weight;
  const int64_t experts = call.counts == nullptr ? 1 : weight.experts();
  const int64_t tiles = few_tiles(call.tokens, call.counts == nullptr ? 0 : experts);
  const bool f8 = call.compute == Compute::kF8;
  const bool few = call.tokens <= most_few(chip, call.compute, experts) && tiles <= kMostTickets;
  const bool wgmma = !few && has_wgmma(chip, call.compute);
  MatmulArguments a;
  a.expert_bytes = static_cast<int64_t>(weight.expert_bytes());
  a.x = call.x, a.x_stride = call.x_stride, a.tokens = call.tokens;
  a.counts = call.counts, a.experts = static_cast<int>(experts), a.norm = call.norm;
  a.y = call.y, a.y_stride = call.y_stride;
  a.bias = call.bias, a.residual = call.residual, a.residual_stride = call.residual_stride;
  a.activation = call.activation, a.soft_cap = call.soft_cap;
  a.gated = call.gated ? weight.rows() / 2 : 0;
  a.tickets = chip.tickets();
  a.multiprocessors = chip.multiprocessors(), a.block_shared_bytes = chip.block_shared_bytes();
  a.weight.columns = weight.columns();
  std::byte* partials = workspace;
  if (!few && call.compute != Compute::kF32) {
    const Prepared prepared = prepared_of(weight, call.compute, call.tokens);
    a.prepared_columns = prepared_columns(weight.columns(), call.compute);
    auto* rows = reinterpret_cast<uint8_t*>(workspace);
    a.prepared = rows;
    if (wgmma && !f8) {
      launch_prepare_wgmma(stream, a, rows);
    } else if (call.compute == Compute::kBF16) {
      launch_prepare_bf16(stream, a, rows);
    } else {
      auto* meta = reinterpret_cast<ActivationMeta*>(rows + prepared.meta_at);
      a.meta = meta;
      (wgmma ? launch_prepare_wgmma_f8 : f8 ? launch_prepare_f8 : launch_prepare_q8)(stream, a, rows, meta);
    }
    partials += prepared.all;
  }
  a.partials = reinterpret_cast<float*>(partials);
  a.token_tiles = few                      ? tiles
                  : call.counts == nullptr ? ceil_div(call.tokens, kManyTokens)
                                           : std::min(experts, call.tokens) + call.tokens / kManyTokens;
  for (size_t i = 0; i < weight.panels().size(); ++i) {
    const CudaWeight::Panel& panel = weight.panels()[i];
    a.weight = weight.rows_of(0, i);
    a.first_row = std::max<int64_t>(call.first_row - panel.first_row, 0);
    a.end_row = std::min(call.end_row - panel.first_row, panel.rows);
    if (a.first_row >= a.end_row) continue;
    a.column = panel.first_row - call.first_row;
    a.row_blocks = ceil_div(a.end_row - a.first_row / kTileRows * kTileRows, kManyRows);
    a.segment = segment_length(panel.rows, weight.columns());
    a.segments = ceil_div(weight.columns(), a.segment);
    if (!few && !chip.batch_invariant() && !(wgmma && call.tokens <= kMostLineTokens)) {
      const int64_t tiles = a.row_blocks * ceil_div(a.token_tiles * kManyTokens, kManyRows);
      a.segment = fast_segment_length(a.weight.columns, a.segments, tiles, a.multiprocessors);
      a.segments = ceil_div(a.weight.columns, a.segment);
    }
    if (wgmma) {
      (f8 ? launch_matmul_wgmma_f8 : launch_matmul_wgmma)(stream, a);
      continue;
    }
    const bool whole = a.first_row == 0 && a.end_row == panel.rows;
    a.split = whole && a.segments > 1 && call.tokens <= kMostSplitTokens &&
              a.row_blocks * a.token_tiles < (few ? kFewBlocks : kManyBlocks);
    if (call.compute == Compute::kF32) {
      launch_matmul_f32(stream, a, few);
      continue;
    }
    const auto launch_matmul = call.compute == Compute::kBF16 ? launch_matmul_bf16
                               : f8                           ? launch_matmul_f8
                                                              : launch_matmul_q8;
    if (!few) {
      launch_matmul(stream, a, false);
      continue;
    }
    // As many row tiles at a time as there are tickets.
    const int64_t last_tile = ceil_div(call.gated ? a.gated : a.end_row, kTileRows);
    const int64_t most_tiles = kMostTickets / a.token_tiles;
    for (a.first_tile = a.first_row / kTileRows; a.first_tile < last_tile; a.first_tile += a.row_tiles) {
      a.row_tiles = std::min(last_tile - a.first_tile, most_tiles);
      launch_matmul(stream, a, true);
    }
  }
}

size_t CudaBackend::kernel_workspace_bytes(const Linear& op) const {
  return matmul_workspace_bytes(*op.weight, op.compute, op.x.shape[0], op.gated);
}

size_t CudaBackend::kernel_workspace_bytes(const GroupedLinear& op) const {
  return matmul_workspace_bytes(*op.weight, op.compute, op.x.shape[0], op.gated);
}

bool CudaBackend::norms(const Linear& op) const { return matmul_norms(*this, *op.weight, op.compute); }
int64_t CudaBackend::gates_to(const Linear& op) const {
  return matmul_gates_to(*this, *op.weight, op.compute);
}
int64_t CudaBackend::gates_to(const GroupedLinear& op) const {
  return matmul_gates_to(*this, *op.weight, op.compute);
}

void CudaBackend::do_linear(const Linear& op) {
  MatmulCall call;
  call.norm = row_norm(op.norm);
  call.weight = static_cast<const CudaWeight*>(op.weight);
  call.end_row = op.weight->rows();
  call.compute = op.compute;
  call.x = op.x.as<float>(), call.x_stride = op.x.stride[0], call.tokens = op.x.shape[0];
  call.y = op.y.as<float>(), call.y_stride = op.y.stride[0];
  if (op.bias.present()) call.bias = op.bias.as<float>();
  if (op.residual.present()) {
    call.residual = op.residual.as<float>();
    call.residual_stride = op.residual.stride[0];
  }
  call.activation = op.activation, call.soft_cap = op.soft_cap;
  call.gated = op.gated;
  run_matmul(*this, call, op.workspace.as<std::byte>());
}

void CudaBackend::do_grouped_linear(const GroupedLinear& op) {
  MatmulCall call;
  call.weight = static_cast<const CudaWeight*>(op.weight);
  call.end_row = op.weight->rows();
  call.compute = op.compute;
  call.x = op.x.as<float>(), call.x_stride = op.x.stride[0], call.tokens = op.x.shape[0];
  call.counts = op.counts.as<int32_t>();
  call.y = op.y.as<float>(), call.y_stride = op.y.stride[0];
  call.activation = op.activation, call.gated = op.gated;
  run_matmul(*this, call, op.workspace.as<std::byte>());
}

}  // namespace qiao::cuda
