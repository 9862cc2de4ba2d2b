// linear and grouped_linear: which kernel, how K is cut, where scratch memory lies. The kernels and their
// plans are those of matmul.h.
#include "backend/ops/linear.h"

#include <algorithm>

#include "backend/cuda/matmul_call.h"

namespace qiao::cuda {
namespace {

// A decode step fills an H200's 132 multiprocessors with four blocks of kFewRows rows each, so many segments
// K is cut into; a constant, so that the sums are those of every chip.
constexpr int64_t kWantedBlocks = 528;
// Fewer blocks than that leave a device idle: then each segment has one of its own.
constexpr int64_t kFewBlocks = 396, kManyBlocks = 132, kMostSplitTokens = 1024;

int64_t segment_length(int64_t rows, int64_t columns) {
  const int64_t units = ceil_div(columns, kSegmentUnit);
  const int64_t wanted = std::clamp<int64_t>(kWantedBlocks / ceil_div(rows, kFewRows), 1, units);
  return std::min(ceil_div(units, wanted), kMostSegment / kSegmentUnit) * kSegmentUnit;
}

int64_t up(int64_t bytes) { return ceil_div(bytes, 256) * 256; }

int64_t prepared_columns(int64_t columns, Compute compute) {
  const int64_t stage = compute == Compute::kBF16 ? 64 : 256;
  return ceil_div(columns, stage) * stage;
}

// Rows of a block; F32's are as many with few tokens.
int64_t rows_of_block(Compute compute, bool few) {
  return few && compute != Compute::kF32 ? kFewRows : kManyRows;
}

// Bytes of the partial sums of so many tokens, where the segments of `rows` rows may have blocks of their
// own.
int64_t partial_bytes(int64_t rows, int64_t columns, int64_t tokens, int64_t experts) {
  const int64_t segments = ceil_div(columns, segment_length(rows, columns));
  const auto least_blocks = ceil_div(rows, kManyRows);
  if (segments == 1 || least_blocks >= kFewBlocks) return 0;
  // The sums of a tile: few tokens and many alike are at most this for each token tile.
  const int64_t counted = std::min(tokens, kMostSplitTokens);
  const int64_t in_few = std::min(counted, kFewTokens * experts);
  const int64_t few_tiles =
      std::min(ceil_div(in_few, kFewTokens) + experts, ceil_div(kFewBlocks, least_blocks));
  const int64_t many_tiles =
      std::min(ceil_div(counted, kManyTokens) + experts, ceil_div(kManyBlocks, least_blocks));
  const int64_t padded_rows = least_blocks * kManyRows;
  const int64_t few = few_tiles * kFewTokens;
  const int64_t many = tokens <= kFewTokens ? 0 : many_tiles * kManyTokens;
  return segments * padded_rows * std::max(few, many) * static_cast<int64_t>(sizeof(float));
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
  const int64_t bytes = up(tokens * columns);
  return {bytes, bytes,
          bytes + up(tokens * columns / kQ8Block * static_cast<int64_t>(sizeof(ActivationMeta)))};
}

}  // namespace

size_t matmul_workspace_bytes(const Weight& weight, Compute compute, int64_t tokens) {
  const auto& of_chip = static_cast<const CudaWeight&>(weight);
  int64_t partial = 0;
  for (const CudaWeight::Panel& panel : of_chip.panels()) {
    partial = std::max(partial, partial_bytes(panel.rows, weight.columns(), tokens, weight.experts()));
    if (compute != Compute::kBF16) continue;
    const int64_t segments = ceil_div(weight.columns(), segment_length(panel.rows, weight.columns()));
    partial = std::max(partial, wgmma_partial_bytes(panel.rows, segments, tokens, weight.experts()));
  }
  const int64_t prepared = tokens <= kFewTokens ? 0 : prepared_of(of_chip, compute, tokens).all;
  return static_cast<size_t>(prepared + partial);
}

void run_matmul(const Stream& stream, const MatmulCall& call, std::byte* workspace, unsigned* tickets) {
  if (call.tokens == 0) return;
  const CudaWeight& weight = *call.weight;
  const int64_t experts = call.counts == nullptr ? 1 : weight.experts();
  // Experts with few rows each are a column of tiles each.
  const bool few = call.tokens <= kFewTokens * experts;
  const bool wgmma =
      call.compute == Compute::kBF16 && stream.compute_major() == 9 && !few && call.tokens > kManyTokens;
  MatmulArguments a;
  a.expert_bytes = static_cast<int64_t>(weight.expert_bytes());
  a.x = call.x, a.x_stride = call.x_stride, a.tokens = call.tokens;
  a.counts = call.counts, a.experts = static_cast<int>(experts);
  a.y = call.y, a.y_stride = call.y_stride;
  a.bias = call.bias, a.residual = call.residual, a.residual_stride = call.residual_stride;
  a.activation = call.activation, a.soft_cap = call.soft_cap;
  a.tickets = tickets;
  a.weight.columns = weight.columns();
  std::byte* partials = workspace;
  if (!few && call.compute != Compute::kF32) {
    const Prepared prepared = prepared_of(weight, call.compute, call.tokens);
    a.prepared_columns = prepared_columns(weight.columns(), call.compute);
    auto* rows = reinterpret_cast<uint8_t*>(workspace);
    a.prepared = rows;
    if (wgmma) {
      launch_prepare_wgmma(stream, a, rows);
    } else if (call.compute == Compute::kBF16) {
      launch_prepare_bf16(stream, a, rows);
    } else {
      auto* meta = reinterpret_cast<ActivationMeta*>(rows + prepared.meta_at);
      a.meta = meta;
      launch_prepare_q8(stream, a, rows, meta);
    }
    partials += prepared.all;
  }
  a.partials = reinterpret_cast<float*>(partials);
  const int64_t size = few ? kFewTokens : kManyTokens;
  a.token_tiles = call.counts == nullptr ? ceil_div(call.tokens, size)
                                         : std::min(experts, call.tokens) + call.tokens / size;
  const int64_t block_rows = rows_of_block(call.compute, few);
  for (size_t i = 0; i < weight.panels().size(); ++i) {
    const CudaWeight::Panel& panel = weight.panels()[i];
    a.weight = weight.rows_of(0, i);
    a.first_row = std::max<int64_t>(call.first_row - panel.first_row, 0);
    a.end_row = std::min(call.end_row - panel.first_row, panel.rows);
    if (a.first_row >= a.end_row) continue;
    a.column = panel.first_row - call.first_row;
    a.row_blocks = ceil_div(a.end_row - a.first_row / kTileRows * kTileRows, block_rows);
    a.segment = segment_length(panel.rows, weight.columns());
    a.segments = ceil_div(weight.columns(), a.segment);
    const bool whole = a.first_row == 0 && a.end_row == panel.rows;
    if (wgmma) {
      launch_matmul_wgmma(stream, a, whole);
      continue;
    }
    a.split = whole && a.segments > 1 && call.tokens <= kMostSplitTokens &&
              a.row_blocks * a.token_tiles < (few ? kFewBlocks : kManyBlocks);
    switch (call.compute) {
      case Compute::kF32:
        launch_matmul_f32(stream, a, few);
        break;
      case Compute::kBF16:
        launch_matmul_bf16(stream, a, few);
        break;
      case Compute::kQ8:
        launch_matmul_q8(stream, a, few);
        break;
    }
  }
}

size_t CudaBackend::workspace_bytes(const Linear& op) const {
  return matmul_workspace_bytes(*op.weight, op.compute, op.x.shape[0]);
}

size_t CudaBackend::workspace_bytes(const GroupedLinear& op) const {
  return matmul_workspace_bytes(*op.weight, op.compute, op.x.shape[0]);
}

void CudaBackend::do_linear(const Linear& op) {
  MatmulCall call;
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
  run_matmul(stream_, call, op.workspace.as<std::byte>(), tickets());
}

void CudaBackend::do_grouped_linear(const GroupedLinear& op) {
  MatmulCall call;
  call.weight = static_cast<const CudaWeight*>(op.weight);
  call.end_row = op.weight->rows();
  call.compute = op.compute;
  call.x = op.x.as<float>(), call.x_stride = op.x.stride[0], call.tokens = op.x.shape[0];
  call.counts = op.counts.as<int32_t>();
  call.y = op.y.as<float>(), call.y_stride = op.y.stride[0];
  run_matmul(stream_, call, op.workspace.as<std::byte>(), tickets());
}

}  // namespace qiao::cuda
