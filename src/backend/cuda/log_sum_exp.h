// The log-sum-exp of a row of logits, taken a piece of the vocabulary after the other: sample and
// token_logprob share this order, so that what sampling says of a token is what training says.
#pragma once

#include "backend/cuda/kernel.h"

namespace qiao::cuda {

inline constexpr int64_t kVocabularyPiece = 4096;
inline constexpr int kPieceThreads = 256, kPieceWarps = kPieceThreads / 32;

// exp's sum over a piece, relative to its largest logit.
struct PieceSum {
  double sum;
  float largest;
};

// Of z_at(0) … z_at(count - 1), by a block of kPieceThreads threads, in each of them. A thread adds up every
// 256th, ascending; then they fold pairwise.
template <class ZAt>
__device__ inline PieceSum sum_piece(int64_t count, ZAt z_at) {
  QIAO_SHARED(float, largest_of, kPieceWarps);
  QIAO_SHARED(double, sum_of, kPieceWarps);
  float z[kVocabularyPiece / kPieceThreads];
  float largest = -INFINITY;
#pragma unroll
  for (int j = 0; j < kVocabularyPiece / kPieceThreads; ++j) {
    const int64_t i = j * kPieceThreads + threadIdx.x;
    z[j] = i < count ? z_at(i) : -INFINITY;
    largest = fmaxf(largest, z[j]);
  }
  largest = warp_max(largest);
  if (threadIdx.x % 32 == 0) largest_of[threadIdx.x / 32] = largest;
  __syncthreads();
  largest = warp_max(largest_of[threadIdx.x % kPieceWarps]);
  // Where all are -infinity nothing is added, but a NaN shows.
  const float shift = largest > -INFINITY ? largest : 0.0f;
  double sum = 0;
#pragma unroll
  for (int j = 0; j < kVocabularyPiece / kPieceThreads; ++j) sum += static_cast<double>(expf(z[j] - shift));
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) sum_of[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = warp_sum(threadIdx.x % 32 < kPieceWarps ? sum_of[threadIdx.x % 32] : 0.0);
  __syncthreads();  // before the next piece of this block
  return {sum, largest};
}

// A row's pieces in ascending order.
class LogSumExp {
 public:
  __device__ void add(const PieceSum& piece) {
    if (piece.largest > largest_) {
      sum_ = sum_ * exp(static_cast<double>(largest_) - static_cast<double>(piece.largest)) + piece.sum;
      largest_ = piece.largest;
    } else if (piece.largest > -INFINITY) {
      sum_ += piece.sum * exp(static_cast<double>(piece.largest) - static_cast<double>(largest_));
    } else {
      sum_ += piece.sum;
    }
  }
  __device__ double value() const { return static_cast<double>(largest_) + log(sum_); }

 private:
  float largest_ = -INFINITY;
  double sum_ = 0;  // of exp(logit - largest)
};

// The value of all pieces: LogSumExp's bits, by a whole warp, which leaves a product and a sum a piece to the
// chain.
__device__ inline double log_sum_exp_of(const PieceSum* pieces, int64_t count) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float before = -INFINITY;  // the largest so far
  double sum = 0;
  for (int64_t base = 0; base < count; base += 32) {
    const PieceSum own = base + lane < count ? pieces[base + lane] : PieceSum{0, -INFINITY};
    float until = own.largest;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const float other = __shfl_up_sync(kAllLanes, until, lanes);
      if (lane >= lanes) until = fmaxf(until, other);
    }
    float largest = __shfl_up_sync(kAllLanes, until, 1);  // of the pieces before the lane's
    largest = lane == 0 ? before : fmaxf(largest, before);
    const bool larger = own.largest > largest;
    const double low = larger ? static_cast<double>(largest) : static_cast<double>(own.largest);
    const double high = larger ? static_cast<double>(own.largest) : static_cast<double>(largest);
    const double factor = own.largest > -INFINITY ? exp(low - high) : 1.0;
    const double keep = larger ? factor : 1.0, more = larger ? own.sum : own.sum * factor;
    const int pieces_here = static_cast<int>(count - base < 32 ? count - base : 32);
    for (int i = 0; i < pieces_here; ++i) {
      sum = sum * __shfl_sync(kAllLanes, keep, i) + __shfl_sync(kAllLanes, more, i);
    }
    before = fmaxf(before, __shfl_sync(kAllLanes, until, 31));
  }
  return static_cast<double>(before) + log(sum);
}

}  // namespace qiao::cuda
