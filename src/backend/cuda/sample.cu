// sample, in four launches whatever rows ask for; a block has a piece of 4096 logits of a row, in all of
// them.
//   prepare    logits come from memory once: the lists, the mask and the temperature make z of them, each
//              piece leaves its largest and its part of the log-sum-exp
//   histogram  counts (top-k and the list of the largest) or exp(z - largest) in fixed point (top-p) by the
//              keys' highest 11 bits; the last block of a row to come finds the digit that holds the cut
//   cut        what can lie at the cut is listed; the last block of a row sorts it and reads the cut off, or
//              finds further digits first, where there is much of it, in the list or in the whole row
//              (sample_cut.h)
//   draw       Gumbel-max of what stays; the last block of a row takes the best of all pieces
// Rows that are greedy or uncut end at once in the middle two. All is counted in whole numbers, so no order
// matters. Small batches are limited by launches and by the chains of a row's last block, large ones by
// passes over memory: three or four beside the writing of z.
#include "backend/ops/sample.h"

#include <algorithm>

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/sample_arguments.h"
#include "backend/philox.h"

namespace qiao::cuda {
namespace {

constexpr double kMostGumbel = 23.0;  // -log(2^-33) = 22.9

// Steps 1 to 3 up to z. The ids of a list are distinct.
__device__ void apply_lists(const SampleArguments& op, const PieceOfRow& p, const SampleRow& how, float* l) {
  if (op.history_ids != nullptr) {
    for (int32_t i = op.history_offsets[p.row] + threadIdx.x; i < op.history_offsets[p.row + 1];
         i += kPieceThreads) {
      const int64_t at = op.history_ids[i] - p.first;
      if (at < 0 || at >= p.count) continue;
      float value = l[at];
      const int32_t count = op.history_counts[i];
      value = value > 0 ? value / how.repetition_penalty : value * how.repetition_penalty;
      const float frequency = how.frequency_penalty * static_cast<float>(count);
      l[at] = value - (frequency + (count > 0 ? how.presence_penalty : 0.0f));
    }
    __syncthreads();
  }
  if (op.bias_ids != nullptr) {
    for (int32_t i = op.bias_offsets[p.row] + threadIdx.x; i < op.bias_offsets[p.row + 1];
         i += kPieceThreads) {
      const int64_t at = op.bias_ids[i] - p.first;
      if (at >= 0 && at < p.count) l[at] += op.bias_values[i];
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kPieceThreads) sample_prepare(SampleArguments op) {
  begin_kernel();
  QIAO_SHARED(float, l, kVocabularyPiece);
  const PieceOfRow p = piece_of(op);
  const SampleRow& how = op.rows[p.row];
  const float* logits = op.logits + p.row * op.logits_stride + p.first;
  constexpr int kFours = kVocabularyPiece / (4 * kPieceThreads);
  float4 kept[kFours];
#pragma unroll
  for (int j = 0; j < kFours; ++j) {
    const int64_t at = 4 * (int64_t{j} * kPieceThreads + threadIdx.x);
    kept[j] = at < p.count ? load_four(logits, at, p.count, op.logits_aligned) : make_float4(0, 0, 0, 0);
  }
  if (p.piece == 0) {
    for (int c = 0; c < op.cut_count; ++c) {
      auto* words = reinterpret_cast<Whole*>(op.cuts + c * op.row_count + p.row);
      for (unsigned i = threadIdx.x; i < sizeof(RowCut) / sizeof(Whole); i += kPieceThreads) words[i] = 0;
    }
  }
#pragma unroll
  for (int j = 0; j < kFours; ++j)
    reinterpret_cast<float4*>(l)[j * kPieceThreads + static_cast<int>(threadIdx.x)] = kept[j];
  __syncthreads();
  if (op.sums != nullptr) {
    const PieceSum sum = sum_piece(p.count, [&](int64_t i) { return l[i] / how.logprob_temperature; });
    if (threadIdx.x == 0) op.sums[p.row * op.pieces + p.piece] = sum;
  }
  apply_lists(op, p, how, l);
  const bool drawn = how.temperature > 0;
  float* z = op.z + p.row * op.z_stride + p.first;
  Best best{0, -1};
#pragma unroll
  for (int j = 0; j < kFours; ++j) {
    const int64_t at = 4 * (int64_t{j} * kPieceThreads + threadIdx.x);
    if (at >= p.count) break;
    const float4 four = reinterpret_cast<const float4*>(l)[at / 4];
    float values[4] = {four.x, four.y, four.z, four.w};
    const uint32_t open =
        op.mask == nullptr ? 15u
                           : static_cast<uint32_t>(op.mask[p.row * op.mask_stride + (p.first + at) / 32]) >>
                                 ((p.first + at) % 32);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((open >> i & 1) == 0) values[i] = -INFINITY;
      if (drawn) values[i] /= how.temperature;
      if (at + i < p.count && values[i] > -INFINITY)
        best = larger(best, {values[i], static_cast<int32_t>(p.first + at + i)});
    }
    if (drawn) store_four(z, at, p.count, true, make_float4(values[0], values[1], values[2], values[3]));
  }
  best = block_largest<kPieceWarps>(best);
  if (threadIdx.x == 0) op.bests[p.row * op.pieces + p.piece] = best;
}

// Not inlined: few are asked for, of many places.
QIAO_NO_INLINE __device__ double gumbel_score(float z, uint32_t word) {
  const double v = (static_cast<double>(word) + 0.5) * 0x1p-32;
  return static_cast<double>(z) - log(-log(v));
}
__device__ std::array<uint32_t, 4> words_of(const SampleRow& how, uint32_t four) {
  return philox4x32({four, static_cast<uint32_t>(how.position), static_cast<uint32_t>(how.choice), 0u},
                    how.seed);
}

__device__ Winner better(Winner a, Winner b) {
  return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a;
}
__device__ Winner warp_winner(Winner w) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    w = better(w, {__shfl_xor_sync(kAllLanes, w.score, lanes), __shfl_xor_sync(kAllLanes, w.id, lanes)});
  }
  return w;
}

// By a whole block.
__device__ void give_token(const SampleArguments& op, int64_t row, int32_t id) {
  if (threadIdx.x >= 32) return;
  if (threadIdx.x == 0) op.ids[row] = id;
  if (op.of_drawn == nullptr) return;
  const double sum = log_sum_exp_of(op.sums + row * op.pieces, op.pieces);
  if (threadIdx.x == 0) op.of_drawn[row] = log_probability(op, row, id, sum);
}

// Min-p and step 4.
__global__ void __launch_bounds__(kPieceThreads) sample_draw(SampleArguments op) {
  begin_kernel();
  QIAO_SHARED(Winner, winners, kPieceWarps);
  const PieceOfRow p = piece_of(op);
  const SampleRow& how = op.rows[p.row];
  constexpr int kFours = kVocabularyPiece / (4 * kPieceThreads);
  float4 kept[kFours];
  if (how.temperature > 0) {  // on their way while the rest is found out
#pragma unroll
    for (int j = 0; j < kFours; ++j) {
      const int64_t at = 4 * (int64_t{j} * kPieceThreads + threadIdx.x);
      kept[j] = at < p.count ? load_four(op.z + p.row * op.z_stride + p.first, at, p.count, true)
                             : make_float4(0, 0, 0, 0);
    }
  }
  const Best best = row_largest<kPieceWarps>(op, p.row);
  if (!is_drawn(how, best)) {
    if (p.piece == 0) give_token(op, p.row, best.id);
    return;
  }
  RowCut* cut = op.cuts + p.row;
  const bool is_cut = draw_task(op, how, best).kind != CutTask::kNothing;
  const Whole least = is_cut ? cut->least : 0;
  // The likeliest token's score to begin with: most others cannot reach it.
  if (threadIdx.x == 0) {
    const auto likeliest = static_cast<uint32_t>(best.id);
    winners[0] = {gumbel_score(best.z, words_of(how, likeliest / 4)[likeliest % 4]), best.id};
  }
  __syncthreads();
  Winner winner = winners[0];
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kFours; ++j) {
    const int64_t at = 4 * (int64_t{j} * kPieceThreads + threadIdx.x);
    if (at >= p.count) break;
    const float values[4] = {kept[j].x, kept[j].y, kept[j].z, kept[j].w};
    bool open[4], any = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t id = p.first + at + i;
      open[i] = at + i < p.count && values[i] > -INFINITY && key_of(values[i], id, op.vocabulary) >= least &&
                static_cast<double>(values[i]) + kMostGumbel > winner.score &&
                (!(how.min_p > 0) || id == best.id || expf(values[i] - best.z) >= how.min_p);
      any = any || open[i];
    }
    if (!any) continue;
    const auto words = words_of(how, static_cast<uint32_t>((p.first + at) / 4));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!open[i]) continue;
      // z + g >= score needs 1 - v <= -log v <= exp(z - score), which one exponential tells; the margin is
      // F32's.
      const float rest = (static_cast<float>(~words[i]) + 0.5f) * 0x1p-32f;
      const auto behind = static_cast<float>(static_cast<double>(values[i]) - winner.score);
      if (rest > expf(behind) * (1.0f + 0x1p-14f)) continue;
      winner = better(winner, {gumbel_score(values[i], words[i]), static_cast<int32_t>(p.first + at + i)});
    }
  }
  winner = warp_winner(winner);
  if (threadIdx.x % 32 == 0) winners[threadIdx.x / 32] = winner;
  __syncthreads();
  winner = warp_winner(winners[threadIdx.x % kPieceWarps]);
  Winner* of_row = op.winners + p.row * op.pieces;
  if (threadIdx.x == 0) of_row[p.piece] = winner;
  if (!last_to_come(&cut->ticket, static_cast<unsigned>(op.pieces))) return;
  for (int64_t i = threadIdx.x % 32; i < op.pieces; i += 32)
    winner = better(winner, {__ldcg(&of_row[i].score), __ldcg(&of_row[i].id)});
  give_token(op, p.row, warp_winner(winner).id);
}

// What lies where in the workspace.
struct SampleMemory {
  int64_t rows, vocabulary, pieces, z_stride, cut_count;
  size_t sums_at, bests_at, winners_at, cuts_at, lists_at, top_lists_at, bytes;

  explicit SampleMemory(const Sample& op)
      : rows(op.logits.shape[0]),
        vocabulary(op.logits.shape[1]),
        pieces(ceil_div(vocabulary, kVocabularyPiece)),
        z_stride(ceil_div(vocabulary, 64) * 64),
        cut_count(op.top_ids.present() ? 2 : 1) {
    const auto up = [](int64_t count, size_t size) {
      return (static_cast<size_t>(count) * size + 255) / 256 * 256;
    };
    const int64_t top = op.top_ids.present() ? op.top_ids.shape[1] : 0;
    sums_at = up(rows * z_stride, sizeof(float));
    bests_at = sums_at + up(rows * pieces, sizeof(PieceSum));
    winners_at = bests_at + up(rows * pieces, sizeof(Best));
    cuts_at = winners_at + up(rows * pieces, sizeof(Winner));
    lists_at = cuts_at + up(cut_count * rows, sizeof(RowCut));
    top_lists_at = lists_at + up(cut_count * rows * kMostListed, sizeof(Whole));
    bytes = top_lists_at + (top > kMostSorted ? up(rows * top, sizeof(Whole)) : 0);
  }
};

}  // namespace

size_t CudaBackend::workspace_bytes(const Sample& op) const { return SampleMemory(op).bytes; }

void CudaBackend::do_sample(const Sample& op) {
  const SampleMemory memory(op);
  if (memory.rows == 0) return;
  SampleArguments a{};
  a.logits = op.logits.as<float>(), a.logits_stride = op.logits.stride[0];
  a.logits_aligned = aligned_16(a.logits) && a.logits_stride % 4 == 0;
  a.vocabulary = memory.vocabulary, a.pieces = memory.pieces, a.z_stride = memory.z_stride;
  a.row_count = memory.rows;
  a.rows = reinterpret_cast<const SampleRow*>(op.rows.as<uint8_t>());
  if (op.mask.present()) a.mask = op.mask.as<int32_t>(), a.mask_stride = op.mask.stride[0];
  if (op.history_ids.present()) {
    a.history_ids = op.history_ids.as<int32_t>(), a.history_counts = op.history_counts.as<int32_t>();
    a.history_offsets = op.history_offsets.as<int32_t>();
  }
  if (op.bias_ids.present()) {
    a.bias_ids = op.bias_ids.as<int32_t>(), a.bias_values = op.bias_values.as<float>();
    a.bias_offsets = op.bias_offsets.as<int32_t>();
  }
  auto* workspace = op.workspace.as<std::byte>();
  a.z = reinterpret_cast<float*>(workspace);
  if (op.log_probabilities.present() || op.top_ids.present())
    a.sums = reinterpret_cast<PieceSum*>(workspace + memory.sums_at);
  a.bests = reinterpret_cast<Best*>(workspace + memory.bests_at);
  a.winners = reinterpret_cast<Winner*>(workspace + memory.winners_at);
  a.cut_count = static_cast<int>(memory.cut_count);
  a.cuts = reinterpret_cast<RowCut*>(workspace + memory.cuts_at);
  a.lists = reinterpret_cast<Whole*>(workspace + memory.lists_at);
  a.top_lists = reinterpret_cast<Whole*>(workspace + memory.top_lists_at);
  a.ids = op.ids.as<int32_t>();
  if (op.log_probabilities.present()) a.of_drawn = op.log_probabilities.as<float>();
  if (op.top_ids.present()) {
    a.top_ids = op.top_ids.as<int32_t>(), a.of_top = op.top_log_probabilities.as<float>();
    a.top_ids_stride = op.top_ids.stride[0], a.of_top_stride = op.top_log_probabilities.stride[0];
    a.top = op.top_ids.shape[1];
  }
  const auto pieces = static_cast<unsigned>(memory.rows * memory.pieces);
  launch("sample", stream_, sample_prepare, pieces, kPieceThreads, 0, a);
  launch_sample_cuts(stream_, a);
  launch("sample", stream_, sample_draw, pieces, kPieceThreads, 0, a);
}

}  // namespace qiao::cuda
