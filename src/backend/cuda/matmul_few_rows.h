// Where things lie in a block of matmul_few.h, and how x comes there: rounded or quantized by all its
// threads. Rows that are normed first (Linear::norm) are normed by every block for itself, as it has all of
// them anyway: threads keep what they load in registers, add up the squares, and norm what they round. A
// round, of two rows up to 4096 columns and of one up to 8192, costs a barrier and ten shuffles in a chain,
// some 500 cycles by prediction, beside the loads, which are there without a norm too: 0.3 us for one token
// of 4096, 1 us for eight of them, 2 us for eight of 8192. A launch of its own takes 2 to 3 us, so no number
// of tokens is better off with it. Not yet run on a device.
#pragma once

#include "backend/cuda/matmul_few_group.h"
#include "backend/cuda/matmul_mma.h"

namespace qiao::cuda {

inline constexpr int kLogFewWarps = 4, kMostFewWarps = 1 << kLogFewWarps;
template <class P>
struct FewShape {
  static constexpr int kStage = P::kFewStage, kLogTogether = P::kTogether == 1 ? 0 : 2;
  static constexpr int kSteps = kStage / P::kStep;
  static constexpr int kUnrolled = P::kMetaBytes == 16 ? kSteps / 2 : kSteps;  // all of halves spill
  static constexpr int kStageBytes = kStage / P::kUnit * P::kUnitBytes;
  static constexpr int kFit = 11264 / kStageBytes;
  static constexpr int kStages = kFit < 3 ? 3 : kFit > 6 ? 6 : kFit;
  static constexpr int kWarpBytes = kStages * kStageBytes;
  static constexpr int kTokenBytes = 32;            // of a step
  static constexpr int kMetaBytes = P::kMetaBytes;  // of a token and a group
  static constexpr int kTicketBytes = kMostFewWarps * 4;
  static constexpr int kSquareBytes = kFewTokens * kMostRowWarps * 4;  // of rows that are normed
  static_assert(kSegmentUnit % kStage == 0 && kStageBytes % 16 == 0 && 1 << kLogTogether == P::kTogether);
  // What wgmma reads beyond the last piece of x, for tokens that are nobody's.
  static_assert(P::kTogether == 1 ||
                kSegmentUnit / P::kGroup * kFewTokens * kMetaBytes + kTicketBytes >= kFewTokens * 16 - 16);

  // Of x, `columns` of so many tokens.
  static constexpr int64_t x_bytes(int64_t columns, int64_t tokens) {
    return columns / P::kStep * kTokenBytes * tokens + columns / P::kGroup * kFewTokens * kMetaBytes;
  }
};

// A block's work in one tile of tokens and one panel of K; units are counted within it.
struct FewPhase {
  TokenTile tile;
  int64_t first_item;     // of the launch's, of row tile 0
  int begin, end;         // the panel's columns
  int segments, segment;  // the panel's, and its first one's number
  int from, to;           // the block's units, of kTogether row tiles
};

// x of a phase, in shared memory: as B, [group][token] a scale and what add_few() takes with it, and
// [token][warp] squares of rows that are normed.
template <class P>
struct FewRows {
  using S = FewShape<P>;
  static constexpr int kTogether = P::kTogether;
  const MatmulArguments& op;
  uint8_t *x, *meta;
  float* squares;

  __device__ static int warp() { return static_cast<int>(threadIdx.x / 32); }
  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }

  __device__ void prepare(const FewPhase& phase) const {
    op.norm.present ? round_normed(phase) : round(phase);
  }

 private:
  // The panel's columns of x: [step][token][lane % 4] the two words of B, or as wgmma takes them: [piece of
  // 16 columns][token].
  __device__ void round(const FewPhase& phase) const {
    constexpr int kAtOnce = 4;
    const int quads = (phase.end - phase.begin + 127) / 128 * 32, all = phase.tile.count * quads;
    const int step = static_cast<int>(blockDim.x);
    const bool aligned = op.x_stride % 4 == 0 && aligned_16(op.x);
    const float* rows = op.x + phase.tile.first * op.x_stride + phase.begin;
    const int64_t width = op.weight.columns - phase.begin;
    // Warps are inside or outside as a whole: a row is a multiple of 32 quads.
    for (int base = static_cast<int>(threadIdx.x); base < all; base += kAtOnce * step) {
      float4 four[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int i = base + u * step, token = i / quads;
        if (i < all) four[u] = load_four(rows + token * op.x_stride, i % quads * 4, width, aligned);
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int i = base + u * step, token = i / quads;
        if (i >= all) continue;
        const float values[4] = {four[u].x, four[u].y, four[u].z, four[u].w};
        store_quad(values, i % quads * 4, token, phase.tile.count);
      }
    }
  }

  // The same of rows that are normed. They lie with warps as add_rms_norm has them, so a thread has one, two
  // or four fours of a row, and keeps four: of one row, of two or of four. What is beyond a row's end stays
  // 0.
  __device__ void round_normed(const FewPhase& phase) const {
    constexpr int kKept = kRowKept;
    const int64_t width = op.weight.columns;
    const int warps = row_warps(width), step = 4 * 32 * warps, first_at = 4 * (warp() % warps * 32 + lane());
    const int log_fours = width <= step ? 0 : width <= 2 * step ? 1 : 2, last_four = (1 << log_fours) - 1;
    const int beside = kMostFewWarps / warps;
    const int count = phase.tile.count, padded = phase.begin + (phase.end - phase.begin + 127) / 128 * 128;
    const bool aligned = op.x_stride % 4 == 0 && aligned_16(op.x);
    const float* rows = op.x + phase.tile.first * op.x_stride;
    for (int first = warp() / warps; first - warp() / warps < count; first += beside * kKept >> log_fours) {
      float4 kept[kKept], gains[kKept];
      const auto token_of = [&](int u) { return first + (u >> log_fours) * beside; };
      const auto at_of = [&](int u) { return first_at + (u & last_four) * step; };
#pragma unroll
      for (int u = 0; u < kKept; ++u) {
        if (token_of(u) >= count) continue;  // of a whole warp
        kept[u] = load_four(rows + token_of(u) * op.x_stride, at_of(u), width, aligned);
      }
      float sum = 0;
#pragma unroll
      for (int u = 0; u < kKept; ++u) {
        if (token_of(u) >= count) continue;
        sum = add_squares(kept[u], (u & last_four) == 0 ? 0.0f : sum);
        if ((u & last_four) != last_four) continue;
        const float of_warp = warp_sum(sum);
        if (lane() == 0) squares[token_of(u) * kMostRowWarps + warp() % warps] = of_warp;
      }
      __syncthreads();
      // Now, while warps fold: before they would take registers that the stages' bookkeeping has.
#pragma unroll
      for (int u = 0; u < kKept; ++u)
        gains[u] = gain(op.norm.gamma, op.norm.gamma_aligned, op.norm.gamma_offset, at_of(u), width);
      float factor = 0;
#pragma unroll
      for (int u = 0; u < kKept; ++u) {
        if (token_of(u) >= count) continue;
        if ((u & last_four) == 0) {
          const float of_lane = lane() < warps ? squares[token_of(u) * kMostRowWarps + lane()] : 0.0f;
          factor = norm_factor(warp_sum(of_lane), width, op.norm.epsilon);
        }
        const int at = at_of(u);
        if (at < phase.begin || at >= padded) continue;  // of a whole warp, too: it has 128 columns
        const float4 four = normed(kept[u], factor, gains[u]);
        const float values[4] = {four.x, four.y, four.z, four.w};
        store_quad(values, at - phase.begin, token_of(u), count);
      }
    }
  }

  __device__ void store_quad(const float (&values)[4], int at, int token, int tokens) const {
    const int inside = at % P::kStep, half = inside / (P::kStep / 2);
    uint8_t* to = x + (at / P::kStep * tokens + token) * S::kTokenBytes + half * 4;
    if constexpr (P::kQuants) {
      ActivationMeta own;
      *reinterpret_cast<uint32_t*>(to + inside % 16 / 4 * 8) = quantize_four(values, own);
      if (threadIdx.x % 8 != 0) return;
      store_meta<typename P::F>(own, meta + (at / 32 * kFewTokens + token) * S::kMetaBytes);
    } else if constexpr (P::kF8) {  // a warp has a whole block of 128
      float scale;
      to = kTogether > 1 ? x + (at / 16 * tokens + token) * 16 + at % 16 : to + inside % 16 / 4 * 8;
      *reinterpret_cast<uint32_t*>(to) = quantize_four_f8(values, scale);
      if (threadIdx.x % 32 != 0) return;
      *reinterpret_cast<float*>(meta + (at / P::kGroup * kFewTokens + token) * S::kMetaBytes) = scale;
    } else {
      to += inside % 8 / 2 * 8;
      *reinterpret_cast<uint32_t*>(to) = two_bf16(values[0], values[1]);
      *reinterpret_cast<uint32_t*>(to + 8) = two_bf16(values[2], values[3]);
    }
  }
};

}  // namespace qiao::cuda
