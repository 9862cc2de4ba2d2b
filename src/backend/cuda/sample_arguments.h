// What sample's kernels are given (sample.cu has the plan), what they leave each other, and what each asks of
// a row.
#pragma once

#include "backend/cuda/log_sum_exp.h"
#include "backend/cuda/sample_cut.h"
#include "backend/ops/sample.h"

namespace qiao::cuda {

inline constexpr int kOfDraw = 0;  // a row's cuts: of z, and of the logits where the largest are listed

inline constexpr unsigned kMostListed = 8192;

struct Best {
  float z;
  int32_t id;  // -1: none above -infinity
};
struct Winner {
  double score;
  int32_t id;
};

// What a row's blocks leave each other of a cut. Zeros before.
struct RowCut {
  Whole weights[kDigits];  // of the keys' highest digits
  Whole wanted;            // of the weights from the cut on
  Whole digit;             // that holds the cut
  Whole before;            // the weights above that digit
  Whole candidates;        // keys that are listed, where known
  Whole least;             // the least key that stays
  unsigned listed, ticket;
};

struct SampleArguments {
  const float* logits;
  int64_t logits_stride, vocabulary, pieces, z_stride, row_count;
  bool logits_aligned;  // rows begin at multiples of 16 bytes, as z's do
  const SampleRow* rows;
  const int32_t* mask;  // null: absent, like the lists
  int64_t mask_stride;
  const int32_t *history_ids, *history_counts, *history_offsets;
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t* bias_offsets;
  float* z;         // [S, z_stride]
  PieceSum* sums;   // [S, pieces], of the logits as given; null: nobody asks
  Best* bests;      // [S, pieces]
  Winner* winners;  // [S, pieces]
  int cut_count;    // of a row
  RowCut* cuts;     // [cut_count, S]
  Whole* lists;     // [cut_count, S, kMostListed]
  int32_t* ids;
  float* of_drawn;   // [S], or null
  int32_t* top_ids;  // [S, top], or null
  float* of_top;
  int64_t top_ids_stride, of_top_stride, top;
  Whole* top_lists;  // [S, top], where that is more than kMostSorted
};

struct PieceOfRow {
  int64_t row, piece, first, count;
};
__device__ inline PieceOfRow piece_of(const SampleArguments& op) {
  const int64_t row = blockIdx.x / op.pieces, piece = blockIdx.x % op.pieces,
                first = piece * kVocabularyPiece;
  const int64_t left = op.vocabulary - first;
  return {row, piece, first, left < kVocabularyPiece ? left : kVocabularyPiece};
}

__device__ inline Best larger(Best a, Best b) {
  const bool second = b.id >= 0 && (a.id < 0 || b.z > a.z || (b.z == a.z && b.id < a.id));
  return second ? b : a;
}
__device__ inline Best warp_largest(Best best) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    best =
        larger(best, {__shfl_xor_sync(kAllLanes, best.z, lanes), __shfl_xor_sync(kAllLanes, best.id, lanes)});
  }
  return best;
}
// Of a block of kWarps warps, in each thread.
template <int kWarps>
__device__ inline Best block_largest(Best best) {
  QIAO_SHARED(Best, of_warp, kWarps);
  best = warp_largest(best);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  return warp_largest(threadIdx.x % 32 < kWarps ? of_warp[threadIdx.x % 32] : Best{0, -1});
}
template <int kWarps>
__device__ inline Best row_largest(const SampleArguments& op, int64_t row) {
  Best best{0, -1};
  for (int64_t i = threadIdx.x; i < op.pieces; i += 32 * kWarps)
    best = larger(best, op.bests[row * op.pieces + i]);
  return block_largest<kWarps>(best);
}

__device__ inline bool is_drawn(const SampleRow& how, Best best) {
  return how.temperature > 0 && best.id >= 0 && best.z != INFINITY;
}

// A row's first cut, by counts or by mass, for the draw; or the one that its largest logits are listed by.
struct CutTask {
  enum Kind { kNothing, kCount, kMass } kind;
  int64_t count;  // kCount: keys that stay
  KeyWeight weight_of;
  float top_p;
};
__device__ inline CutTask draw_task(const SampleArguments& op, const SampleRow& how, Best best) {
  CutTask task{CutTask::kNothing, how.top_k, {false, best.z, 0}, how.top_p};
  if (!is_drawn(how, best)) return task;
  if (how.top_k > 0 && how.top_k < op.vocabulary) {
    task.kind = CutTask::kCount;
  } else if (how.top_p < 1) {
    task.kind = CutTask::kMass, task.weight_of.is_mass = true;
  }
  return task;
}

// Log-probabilities are of the logits as given. Of id -1: -infinity.
__device__ inline float log_probability(const SampleArguments& op, int64_t row, int32_t id,
                                        double log_sum_exp) {
  const float* logits = op.logits + row * op.logits_stride;
  if (id < 0 || logits[id] == -INFINITY) return -INFINITY;
  const float temperature = op.rows[row].logprob_temperature;
  return static_cast<float>(static_cast<double>(logits[id] / temperature) - log_sum_exp);
}

// sample_cut.cu: the two launches between z and the draw.
void launch_sample_cuts(const Stream& stream, const SampleArguments& op);

}  // namespace qiao::cuda
