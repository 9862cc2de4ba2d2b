// The tensor cores' products (matmul.h) with up to eight tokens a tile, as a decode step has them. The limit
// is the memory's bandwidth: the weight is read once, x and the sums come from the L2 cache.
// Plan: as many blocks as there are multiprocessors, one on each for the whole launch. The units of work, a
// row tile (16 rows) in a segment of K, stand in a line: [tile of tokens][panel of K][row tile][segment]; a
// block has an even share of the line, and of that each of its warps one. So a warp reads runs of memory of
// many units, and its pipeline of cp.async (kStages stages of about 2 KB, waited for by the warp alone: 16
// warps keep 100 to 150 KB in flight on a multiprocessor, where 32 B/ns at 1 us of latency need 32 KB) goes
// on over the ends of units. x lies in shared memory as mma takes its B, rounded or quantized by the block
// while the first stages are on their way; a panel is as much of K as has room there, mostly all of it. So a
// block stops as a whole only where its share goes over to another panel or tile of tokens.
// FP8 on Hopper multiplies by wgmma, which takes four warps at the same instruction: they walk as one, each
// with its own row tile of four that follow each other, and its own stages. Memory gives each of the four
// warpgroups a stage, 34 KB together, in 1900 cycles (18 bytes a cycle); four products that wait for each
// other and what follows are some 300. Prediction: BF16's share of the bandwidth.
// A row tile that one warp has alone is added up in its registers. Of another each warp leaves its segments'
// sums in memory, and the last to arrive adds them up, ascending; where the warps are of one block, which is
// the rule where row tiles come out even, that takes no fence of the device.
// Of a gated product (MatmulArguments::gated) up's row tile stands in the line behind gate's with the same
// outputs, and both are one tile with twice as many segments; whoever has all of their sums gates them.
// Gate's wait in memory for up's, which are a whole tile later. Prediction: 2 to 3 us a layer less, what a
// launch of its own took, but for some 0.3 us in which the last to arrive reads twice as many sums. Not yet
// run on a device. A stage's instructions bound what the formats with small blocks can reach (four a clock,
// where memory gives 16 to 18 bytes a clock): matmul_few_group.h has as few as it can. The share of the
// bandwidth is not yet measured.
#pragma once

#include "backend/cuda/matmul_few_rows.h"

namespace qiao::cuda {

// Tiles of kFewTokens rows of the experts; by whole warps.
__device__ inline int count_token_tiles(const int32_t* counts, int experts) {
  int tiles = 0;
#pragma unroll 4
  for (int e = static_cast<int>(threadIdx.x % 32); e < experts; e += 32) {
    tiles += (counts[e] + kFewTokens - 1) / kFewTokens;
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) tiles += __shfl_xor_sync(kAllLanes, tiles, lanes);
  return tiles;
}

// A warp's share of a phase; row tiles are counted in groups of those that walk together. Where gated even
// ones are gate's, odd ones up's.
struct FewWalk {
  int from, to, group, segment, stages;  // its units; where it begins; how many stages it has
  // What is brought next.
  const uint8_t* row;
  int panel_bytes, at, group_to, brought = 0, slot_to = 0;
};

template <class P>
struct FewBlock {
  using S = FewShape<P>;
  static constexpr int kTogether = P::kTogether;
  const MatmulArguments& op;
  int log_warps, warp, lane;
  // In shared memory: this warp's stages; x; [group][token] a scale and what add_few() takes with it;
  // by the warp that a row tile begins in, how many of its segments are there; [token][warp] squares of rows.
  uint8_t *stages, *x, *meta;
  unsigned* tickets;
  float* squares;

  __device__ explicit FewBlock(const MatmulArguments& arguments)
      : op(arguments),
        log_warps(arguments.log_warps),
        warp(static_cast<int>(threadIdx.x / 32)),
        lane(static_cast<int>(threadIdx.x % 32)) {
    auto* shared = shared_memory<uint8_t>();
    const int columns = static_cast<int>(op.panel_segments * op.segment);
    stages = shared + warp * S::kWarpBytes;
    x = shared + (S::kWarpBytes << log_warps);
    meta = x + columns / P::kStep * S::kTokenBytes * static_cast<int>(op.slot_tokens);
    tickets = reinterpret_cast<unsigned*>(meta + columns / P::kGroup * kFewTokens * S::kMetaBytes);
    squares = reinterpret_cast<float*>(tickets + kMostFewWarps);
  }

  __device__ int log_walkers() const { return log_warps - S::kLogTogether; }
  __device__ uint8_t* stage_at(int slot) const { return stages + slot * S::kStageBytes; }

  // `bytes` of a stage on their way, all of them where there are more.
  __device__ void bring(uint8_t* to, const uint8_t* from, int bytes) const {
#pragma unroll
    for (int at = 0; at < S::kStageBytes; at += 512) {
      const int own = at + lane * 16;
      if (own < bytes && (at + 512 <= S::kStageBytes || own < S::kStageBytes))
        copy_async<16>(to + own, from + own);
    }
  }

  // This warp's row tile of the launch, in a group of those that are walked together; of up gate's.
  __device__ int row_tile_of(int group) const {
    return (group >> op.log_sides) * kTogether + warp % kTogether;
  }

  // One step: of the tile in the stage, x and its meta as this lane takes them.
  template <class L>
  __device__ void multiply(const uint8_t* stage, int step, const uint8_t* x_step, const uint8_t* metas,
                           float (&sums)[L::kSums]) const {
    const uint2 both = tile::pair(x_step);
    const uint32_t b[2] = {both.x, both.y};
    if constexpr (P::kQuants) {
      using F = typename P::F;
      add_few<L, F>(stage + step / F::kGroups * F::kTileBytes, step % F::kGroups, lane, b, metas, sums);
    } else {
      const uint4 four = tile::four(stage + step * 512 + lane * 16);
      const uint32_t a[4] = {four.x, four.y, four.z, four.w};
      multiply_add_bf16(sums, a, b);
    }
  }

  // Where gated `sums` are up's, and gate's lie where its first segment's do.
  template <class L>
  __device__ void finish(const FewPhase& phase, int row_tile, const float (&sums)[L::kSums]) const {
    if (op.gated != 0) return finish_gated<L>(phase, row_tile, sums);
#pragma unroll
    for (int i = 0; i < L::kSums; ++i) {
      const int64_t row = (op.first_tile + row_tile) * kTileRows + L::row(lane, i);
      const int token = L::token(lane, i);
      if (row >= op.first_row && row < op.end_row && token < phase.tile.count) {
        finish_sum(op, phase.tile.first + token, row, sums[i]);
      }
    }
  }

  template <class L>
  __device__ void finish_gated(const FewPhase& phase, int row_tile, const float (&sums)[L::kSums]) const {
    const float* of_gate = partials_of(phase, row_tile, 0);
    const int first = (static_cast<int>(op.first_tile) + row_tile) * kTileRows;
    float gate[4] = {}, up[4] = {};
#pragma unroll
    for (int i = 0; i < L::kSums; ++i) {
      const int token = L::token(lane, i), row = L::row(lane, i);
      if (token >= phase.tile.count) continue;
      gate[i] = __ldcg(of_gate + token * kTileRows + row), up[i] = sums[i];
      if (op.bias == nullptr) continue;
      gate[i] += op.bias[first + row], up[i] += op.bias[op.gated + first + row];
    }
    const float4 y = gate_sums(op.activation, make_float4(gate[0], gate[1], gate[2], gate[3]),
                               make_float4(up[0], up[1], up[2], up[3]));
    const float four[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < L::kSums; ++i) {
      const int token = L::token(lane, i);
      if (token < phase.tile.count)
        op.y[(phase.tile.first + token) * op.y_stride + first + L::row(lane, i)] = four[i];
    }
  }

  // Of a row tile's partial sums, [segment][token][row], up's segments behind gate's: of a segment.
  __device__ float* partials_of(const FewPhase& phase, int row_tile, int segment) const {
    const int64_t place = (((phase.first_item + row_tile) * op.segments) << op.log_sides) + segment;
    return op.partials + place * (op.slot_tokens * kTileRows);
  }

  template <class L>
  __device__ void leave(const FewPhase& phase, float* partial, const float (&sums)[L::kSums]) const {
#pragma unroll
    for (int i = 0; i < L::kSums; ++i) {
      const int token = L::token(lane, i);
      if (token < phase.tile.count) partial[token * kTileRows + L::row(lane, i)] = sums[i];
    }
  }

  // After this warp has left `count` of the row tile's segments: whoever finds that all are there adds up.
  template <class L>
  __device__ void arrive(const FewPhase& phase, int group, int count) const {
    const int first = first_unit_of(phase, group), last = first + (phase.segments << op.log_sides);
    const int row_tile = row_tile_of(group), segments = static_cast<int>(op.segments);
    const bool of_block = phase.segments == segments && first >= phase.from && last <= phase.to;
    unsigned* ticket = op.tickets + phase.first_item + row_tile;
    if (of_block) {
      const int walker = (((first - phase.from + 1) << log_walkers()) - 1) / (phase.to - phase.from);
      ticket = tickets + walker * kTogether + warp % kTogether;
      __threadfence_block();
    } else {
      __threadfence();
    }
    __syncwarp();
    unsigned before = 0;
    if (lane == 0) before = atomicAdd(ticket, static_cast<unsigned>(count));
    before = __shfl_sync(kAllLanes, before, 0);
    if (before + static_cast<unsigned>(count) != static_cast<unsigned>(segments << op.log_sides)) return;
    if (lane == 0) *ticket = 0;  // for the next phase or launch
    if (of_block) {
      __threadfence_block();
    } else {
      __threadfence();
    }
    float sums[L::kSums] = {};
#pragma unroll 1
    for (int from = 0; from < segments << op.log_sides; from += segments) {
      if (from != 0) leave<L>(phase, partials_of(phase, row_tile, 0), sums);
#pragma unroll 8
      for (int s = 0; s < segments; ++s) {
        const float* partial = partials_of(phase, row_tile, from + s);
#pragma unroll
        for (int i = 0; i < L::kSums; ++i) {
          const int token = L::token(lane, i);
          if (token >= phase.tile.count) continue;
          const float next = __ldcg(partial + token * kTileRows + L::row(lane, i));
          sums[i] = s == 0 ? next : sums[i] + next;
        }
      }
    }
    finish<L>(phase, row_tile, sums);
  }

  // Where a group's row tiles, of gate and up, begin in the line.
  __device__ int first_unit_of(const FewPhase& phase, int group) const {
    return (group >> op.log_sides << op.log_sides) * phase.segments;
  }

  // The next stage on its way, if any is left: the panel's part of a row tile, from a byte of it on.
  __device__ void bring_next(FewWalk& walk) const {
    if (walk.brought < walk.stages) {
      bool has_rows = true;
      if constexpr (kTogether > 1) has_rows = row_tile_of(walk.group_to) < op.row_tiles;
      if (has_rows) bring(stage_at(walk.slot_to), walk.row + walk.at, walk.panel_bytes - walk.at);
      ++walk.brought, walk.at += S::kStageBytes;
      if (walk.at >= walk.panel_bytes)
        walk.row += walk.group_to % 2 == 0 ? op.after_even : op.after_odd, walk.at = 0, ++walk.group_to;
      walk.slot_to = walk.slot_to == S::kStages - 1 ? 0 : walk.slot_to + 1;
    }
    copy_async_commit();
  }

  // This warp's share of a phase, its first stages on their way before x is asked for; and x.
  __device__ FewWalk start(const FewPhase& phase) const {
    FewWalk walk;
    const int units = phase.to - phase.from, segment = static_cast<int>(op.segment);
    const int walker = warp >> S::kLogTogether;
    walk.from = phase.from + (units * walker >> log_walkers());
    walk.to = phase.from + (units * (walker + 1) >> log_walkers());
    const int row_stages = (phase.end - phase.begin + S::kStage - 1) / S::kStage;
    walk.group = walk.group_to = walk.from / phase.segments;
    walk.segment = walk.from - walk.group * phase.segments;
    const int last_group = walk.to / phase.segments, rest = walk.to - last_group * phase.segments;
    walk.stages = (last_group - walk.group) * row_stages + (rest - walk.segment) * (segment / S::kStage);

    const int64_t row_tile = op.first_tile + row_tile_of(walk.group);
    const int64_t up = (walk.group & op.log_sides) == 0 ? 0 : op.gated / kTileRows;
    walk.row = op.weight.tiles + phase.tile.expert * op.expert_bytes +
               (row_tile + up) * op.weight.units * P::kUnitBytes + phase.begin / P::kUnit * P::kUnitBytes;
    walk.panel_bytes = (phase.end - phase.begin + P::kUnit - 1) / P::kUnit * P::kUnitBytes;
    walk.at = walk.segment * (segment / P::kUnit) * P::kUnitBytes;
#pragma unroll
    for (int i = 0; i < S::kStages - 1; ++i) bring_next(walk);

    wait_for_previous();  // the weight does not depend on it
    FewRows<P>{op, x, meta, squares}.prepare(phase);
    if constexpr (kTogether > 1) multiply_stored();
    __syncthreads();
    return walk;
  }

  template <class L>
  __device__ void run(const FewPhase& phase, FewWalk walk) const {
    const int from = walk.from, to = walk.to, segment = static_cast<int>(op.segment);
    int group = walk.group, s = walk.segment;
    const int tokens = phase.tile.count, step_bytes = tokens * S::kTokenBytes;
    const int own = L::of_column(lane / 4), token = own < tokens ? own : tokens - 1;  // else nobody's
    const uint8_t* x_lane = x + token * S::kTokenBytes + lane % 4 * 8;
    const uint8_t* meta_lane = meta + L::token(lane, 0) * S::kMetaBytes;
    float sums[L::kSums] = {}, total[L::kSums] = {};
    int k = phase.begin + s * segment, slot = 0, left_behind = 0;
    int stop = k + segment < phase.end ? k + segment : phase.end;  // the segment's end
    for (int stage = 0; stage < walk.stages; ++stage) {
      copy_async_wait<S::kStages - 2>();
      __syncwarp();
      bring_next(walk);
      const uint8_t* w = stage_at(slot);
      slot = slot == S::kStages - 1 ? 0 : slot + 1;
      const int first_step = (k - phase.begin) / P::kStep;
      const uint8_t* x_step = x_lane + first_step * step_bytes;
      const uint8_t* metas = meta_lane + (k - phase.begin) / P::kGroup * (kFewTokens * S::kMetaBytes);
      const auto multiply_step = [&](int step) {
        multiply<L>(w, step, x_step + step * step_bytes, metas + step * (kFewTokens * S::kMetaBytes), sums);
      };
      if constexpr (kTogether > 1) {
        add_few_e4m3_block(w, x + first_step * step_bytes, step_bytes, metas, lane, sums);
      } else if constexpr (P::kF8) {
        add_few_f8_block(w, x_step, step_bytes, metas, lane, sums);
      } else if (P::kUnit >= S::kStage || k + S::kStage <= phase.end) {
#pragma unroll S::kUnrolled
        for (int step = 0; step < S::kSteps; ++step) multiply_step(step);
      } else {
        const int steps = (phase.end - k + P::kStep - 1) / P::kStep;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) multiply_step(step);
      }
      k += S::kStage;
      if (k < stop) continue;
      const int first = first_unit_of(phase, group);
      const bool alone =
          phase.segments == op.segments && first >= from && first + (phase.segments << op.log_sides) <= to;
      const bool row_ends = s == phase.segments - 1, of_gate = (~group & op.log_sides) != 0;
      bool has_rows = true;
      if constexpr (kTogether > 1) has_rows = row_tile_of(group) < op.row_tiles;
      if (alone) {
#pragma unroll
        for (int i = 0; i < L::kSums; ++i) total[i] = s == 0 ? sums[i] : total[i] + sums[i];
        if (row_ends && has_rows) {
          if (of_gate) {
            leave<L>(phase, partials_of(phase, row_tile_of(group), 0), total);
          } else {
            finish<L>(phase, row_tile_of(group), total);
          }
        }
      } else if (has_rows) {
        const int of_up = (group & op.log_sides) == 0 ? 0 : static_cast<int>(op.segments);
        leave<L>(phase, partials_of(phase, row_tile_of(group), of_up + phase.segment + s), sums);
        ++left_behind;
        if ((row_ends && !of_gate) || stage == walk.stages - 1) {
          arrive<L>(phase, group, left_behind);
          left_behind = 0;
        }
      }
#pragma unroll
      for (int i = 0; i < L::kSums; ++i) sums[i] = 0;
      if (row_ends) {
        ++group, s = 0, k = phase.begin;
      } else {
        ++s;
      }
      stop = k + segment < phase.end ? k + segment : phase.end;
    }
  }
};

template <class P>
__global__ void __launch_bounds__(32 * kMostFewWarps, 1) matmul_few(MatmulArguments op) {
  let_next_begin();
  if (op.norm.gamma != nullptr) {  // to the L2 cache, while the kernel before ends: each block a part
    const int64_t at = (int64_t{threadIdx.x} * gridDim.x + blockIdx.x) * 32;
    if (at < op.weight.columns) prefetch(op.norm.gamma + at);
  }
  if (op.counts != nullptr) wait_for_previous();  // which rows are an expert's
  const FewBlock<P> block(op);
  if (threadIdx.x < static_cast<unsigned>(kMostFewWarps)) block.tickets[threadIdx.x] = 0;
  // All that is counted here is below kMostTickets * K / 256.
  const int row_tiles = static_cast<int>(op.row_tiles), all_segments = static_cast<int>(op.segments);
  const int groups = (row_tiles + P::kTogether - 1) / P::kTogether << op.log_sides;
  const int panel_segments = static_cast<int>(op.panel_segments), grain = static_cast<int>(op.grain);
  const int tiles =
      op.counts == nullptr ? static_cast<int>(op.token_tiles) : count_token_tiles(op.counts, op.experts);
  const int of_tile = groups * all_segments, shares = tiles * (of_tile / grain);
  const int blocks = static_cast<int>(gridDim.x), index = static_cast<int>(blockIdx.x);
  const int share = op.counts == nullptr ? op.share : shares / blocks;
  const int more = shares - share * blocks;  // so many blocks have one more
  int unit = (index * share + (index < more ? index : more)) * grain;
  const int end = unit + (share + (index < more ? 1 : 0)) * grain;
  if (unit >= end) wait_for_previous();
  for (bool is_first = true; unit < end; is_first = false) {
    const int tile = tiles == 1 ? 0 : unit / of_tile, in_tile = unit - tile * of_tile;
    const int panel = panel_segments == all_segments ? 0 : in_tile / (groups * panel_segments);
    const int segment = panel * panel_segments, left = all_segments - segment;
    const int segments = left < panel_segments ? left : panel_segments;
    const int base = tile * of_tile + groups * segment, next = base + groups * segments;
    const int stop = next < end ? next : end;
    const int64_t columns = (segment + segments) * op.segment;
    FewPhase phase;
    phase.tile = token_tile(op.counts, op.experts, op.tokens, tile, kFewTokens);
    phase.first_item = int64_t{tile} * row_tiles;
    phase.begin = segment * static_cast<int>(op.segment);
    phase.end = static_cast<int>(columns < op.weight.columns ? columns : op.weight.columns);
    phase.segments = segments, phase.segment = segment;
    phase.from = unit - base, phase.to = stop - base;
    unit = stop;
    if (!is_first) __syncthreads();  // the last phase's x and stages are free
    const FewWalk walk = block.start(phase);
    if constexpr (P::kQuants) {
      if (phase.tile.count <= kFewTokens / 2) {
        block.template run<EvenColumns>(phase, walk);
        continue;
      }
    }
    block.template run<AllColumns>(phase, walk);
  }
}

template <class P>
void launch_few(const Stream& stream, const MatmulArguments& arguments) {
  using S = FewShape<P>;
  MatmulArguments op = arguments;
  op.slot_tokens = op.tokens < kFewTokens ? op.tokens : kFewTokens;
  const int64_t of_segment = S::x_bytes(op.segment, op.slot_tokens);
  op.log_warps = kLogFewWarps;
  const int64_t square_bytes = op.norm.present ? S::kSquareBytes : 0;
  const auto room = [&] {
    return op.block_shared_bytes - (int64_t{S::kWarpBytes} << op.log_warps) - S::kTicketBytes - square_bytes;
  };
  static_assert((S::kWarpBytes << kLogFewWarps) + S::x_bytes(kMostSegment, kFewTokens) + S::kTicketBytes +
                    S::kSquareBytes <=
                kNormSharedBytes);
  // Where there is less than Hopper's.
  while (op.log_warps > S::kLogTogether && room() < of_segment) --op.log_warps;
  const int64_t fit = room() < of_segment ? 1 : room() / of_segment;
  const int64_t panels = ceil_div(op.segments, fit);
  op.panel_segments = ceil_div(op.segments, panels);
  // Where gated, of gate and up.
  const int64_t groups = ceil_div(op.row_tiles, P::kTogether) * op.token_tiles;
  op.log_sides = op.gated == 0 ? 0 : 1;
  const int64_t of_group = op.segments << op.log_sides, units = groups * of_group;
  const int64_t blocks = op.multiprocessors < units ? op.multiprocessors : units;
  // Whole row tiles for each block where they come out even to a twentieth: their segments meet in it.
  const bool even =
      op.counts == nullptr && panels == 1 && ceil_div(groups, blocks) * blocks * 20 <= groups * 21;
  op.grain = even ? of_group : 1;
  op.share = static_cast<int>((even ? groups : units) / blocks);
  const int64_t row_bytes = op.weight.units * P::kUnitBytes, next = row_bytes * P::kTogether;
  const int64_t up = row_bytes * (op.gated / kTileRows);
  op.after_even = op.gated == 0 ? next : up, op.after_odd = next - up;
  const int64_t bytes = (int64_t{S::kWarpBytes} << op.log_warps) +
                        S::x_bytes(op.panel_segments * op.segment, op.slot_tokens) + S::kTicketBytes +
                        square_bytes;
  launch("linear", stream, matmul_few<P>, static_cast<unsigned>(blocks), 32u << op.log_warps,
         static_cast<size_t>(bytes), op);
}

}  // namespace qiao::cuda
