// sample. Passes over pieces of 4096 logits come first: a copy with the row's lists applied, the mask and the
// temperature, each piece's largest and its part of the log-sum-exp. Then a block a row cuts and draws. A cut
// is the least key (z, then the smaller id) that stays, found eight bits at a time from histograms in shared
// memory: of counts for top-k; for top-p of exp(z - largest) in fixed point, whose sums no order changes.
// Rows lie in L2 between passes, which is the limit.
#include "backend/ops/sample.h"

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/log_sum_exp.h"
#include "backend/philox.h"

namespace qiao::cuda {
namespace {

constexpr int kDrawThreads = 1024, kDrawWarps = kDrawThreads / 32;
constexpr float kMassOne = 0x1p40f;   // 1 in fixed point: a vocabulary's sum fits 64 bits
constexpr double kMostGumbel = 23.0;  // -log(2^-33) = 22.9

struct Best {
  float z;
  int32_t id;  // -1: none above -infinity
};

struct SampleArguments {
  const float* logits;
  int64_t logits_stride, vocabulary, pieces, z_stride;
  const uint8_t* rows;
  int64_t rows_stride;
  const int32_t* mask;  // null: absent, like the lists
  int64_t mask_stride;
  const int32_t *history_ids, *history_counts, *history_offsets;
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t* bias_offsets;
  float* z;        // [S, z_stride]
  PieceSum* sums;  // [S, pieces], of the logits as given; null: nobody asks
  Best* bests;     // [S, pieces]
  int32_t* ids;
};

__device__ SampleRow row_of(const SampleArguments& op, int64_t row) {
  SampleRow how;
  memcpy(&how, op.rows + row * op.rows_stride, sizeof how);  // of any alignment
  return how;
}

struct PieceOfRow {
  int64_t row, piece, first, count;
};
__device__ PieceOfRow piece_of(const SampleArguments& op) {
  const int64_t row = blockIdx.x / op.pieces, piece = blockIdx.x % op.pieces,
                first = piece * kVocabularyPiece;
  const int64_t left = op.vocabulary - first;
  return {row, piece, first, left < kVocabularyPiece ? left : kVocabularyPiece};
}

__global__ void __launch_bounds__(kPieceThreads) sample_copy(SampleArguments op) {
  begin_kernel();
  const PieceOfRow p = piece_of(op);
  const float* logits = op.logits + p.row * op.logits_stride + p.first;
  float* z = op.z + p.row * op.z_stride + p.first;
  for (int64_t i = threadIdx.x; i < p.count; i += kPieceThreads) z[i] = logits[i];
  if (op.sums == nullptr) return;
  const float temperature = row_of(op, p.row).logprob_temperature;
  const PieceSum sum = sum_piece(p.count, [&](int64_t i) { return logits[i] / temperature; });
  if (threadIdx.x == 0) op.sums[p.row * op.pieces + p.piece] = sum;
}

// Step 1, and the biases of step 2. The ids of a list are distinct.
__global__ void __launch_bounds__(kPieceThreads) sample_lists(SampleArguments op) {
  begin_kernel();
  const int64_t row = blockIdx.x;
  const SampleRow how = row_of(op, row);
  float* l = op.z + row * op.z_stride;
  if (op.history_ids != nullptr) {
    for (int32_t i = op.history_offsets[row] + threadIdx.x; i < op.history_offsets[row + 1];
         i += kPieceThreads) {
      float value = l[op.history_ids[i]];
      const int32_t count = op.history_counts[i];
      value = value > 0 ? value / how.repetition_penalty : value * how.repetition_penalty;
      const float frequency = how.frequency_penalty * static_cast<float>(count);
      l[op.history_ids[i]] = value - (frequency + (count > 0 ? how.presence_penalty : 0.0f));
    }
  }
  __syncthreads();
  if (op.bias_ids != nullptr) {
    for (int32_t i = op.bias_offsets[row] + threadIdx.x; i < op.bias_offsets[row + 1]; i += kPieceThreads) {
      l[op.bias_ids[i]] += op.bias_values[i];
    }
  }
}

__device__ Best larger(Best a, Best b) {
  const bool second = b.id >= 0 && (a.id < 0 || b.z > a.z || (b.z == a.z && b.id < a.id));
  return second ? b : a;
}
__device__ Best warp_largest(Best best) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    best =
        larger(best, {__shfl_xor_sync(kAllLanes, best.z, lanes), __shfl_xor_sync(kAllLanes, best.id, lanes)});
  }
  return best;
}
// Of a block of kWarps warps, in each thread.
template <int kWarps>
__device__ Best block_largest(Best best, Best* shared) {
  best = warp_largest(best);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
  __syncthreads();
  return warp_largest(threadIdx.x % 32 < kWarps ? shared[threadIdx.x % 32] : Best{0, -1});
}

// The mask of step 2 and the division of step 3.
__global__ void __launch_bounds__(kPieceThreads) sample_scale(SampleArguments op) {
  begin_kernel();
  const PieceOfRow p = piece_of(op);
  const float temperature = row_of(op, p.row).temperature;
  float* z = op.z + p.row * op.z_stride;
  Best best{0, -1};
  for (int64_t i = p.first + threadIdx.x; i < p.first + p.count; i += kPieceThreads) {
    float value = z[i];
    if (op.mask != nullptr) {
      const auto word = static_cast<uint32_t>(op.mask[p.row * op.mask_stride + i / 32]);
      if ((word >> (i % 32) & 1) == 0) value = -INFINITY;
    }
    if (temperature > 0) value /= temperature;
    z[i] = value;
    if (value > -INFINITY) best = larger(best, {value, static_cast<int32_t>(i)});
  }
  QIAO_SHARED(Best, bests, kPieceWarps);
  best = block_largest<kPieceWarps>(best, bests);
  if (threadIdx.x == 0) op.bests[p.row * op.pieces + p.piece] = best;
}

// Keys grow with the logit and, among equals, with smaller ids; all of a row are distinct. NaN lies below
// all.
__device__ uint64_t key_of(float z, int64_t id) {
  const uint32_t bits = __float_as_uint(z);
  uint32_t rank = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  if (bits == 0x80000000u) rank = 0x80000000u;  // -0 is 0
  if (z != z) rank = 0;
  return uint64_t{rank} << 32 | static_cast<uint32_t>(~static_cast<uint32_t>(id));
}

struct Histogram {
  unsigned long long weights[256];
  unsigned counts[256];
  unsigned long long prefix, wanted;
  bool done;
};

// The largest key such that the weights of it and all above reach `wanted` > 0, by a block of kDrawThreads.
template <class Weight>
__device__ uint64_t cut(const float* z, int64_t count, uint64_t wanted, Histogram* h, Weight weight) {
  if (threadIdx.x == 0) h->prefix = 0, h->wanted = wanted, h->done = false;
  for (int shift = 56; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) h->weights[threadIdx.x] = 0, h->counts[threadIdx.x] = 0;
    __syncthreads();
    const uint64_t prefix = h->prefix;
    for (int64_t i = threadIdx.x; i < count; i += kDrawThreads) {
      const uint64_t key = key_of(z[i], i);
      if (shift < 56 && key >> (shift + 8) != prefix) continue;
      const unsigned long long w = weight(z[i]);
      if (w == 0) continue;
      atomicAdd(&h->weights[key >> shift & 255], w);
      atomicAdd(&h->counts[key >> shift & 255], 1u);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned long long left = h->wanted;
      int digit = 255;
      while (digit > 0 && h->weights[digit] < left) left -= h->weights[digit--];
      h->prefix = prefix << 8 | static_cast<unsigned>(digit);
      h->wanted = left;
      // All that begin so are taken, or there is one alone.
      h->done = h->weights[digit] == left || h->counts[digit] == 1;
    }
    __syncthreads();
    if (h->done || shift == 0) {
      const uint64_t least = h->prefix << shift;
      __syncthreads();  // before the histogram's next use
      return least;
    }
  }
  return 0;
}

__device__ unsigned long long mass_of(float z, float largest) {
  return static_cast<unsigned long long>(expf(z - largest) * kMassOne);
}

__device__ double gumbel_score(float z, uint32_t word) {
  const double v = (static_cast<double>(word) + 0.5) * 0x1p-32;
  return static_cast<double>(z) - log(-log(v));
}
__device__ std::array<uint32_t, 4> words_of(const SampleRow& how, uint32_t four) {
  return philox4x32({four, static_cast<uint32_t>(how.position), static_cast<uint32_t>(how.choice), 0u},
                    how.seed);
}

struct Winner {
  double score;
  int32_t id;
};
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

// Steps 3 and 4.
__global__ void __launch_bounds__(kDrawThreads) sample_draw(SampleArguments op) {
  begin_kernel();
  QIAO_SHARED(Best, bests, kDrawWarps);
  QIAO_SHARED(Histogram, histogram, 1);
  QIAO_SHARED(Winner, winners, kDrawWarps);
  QIAO_SHARED(unsigned long long, totals, kDrawWarps);
  const int64_t row = blockIdx.x;
  const SampleRow how = row_of(op, row);
  const float* z = op.z + row * op.z_stride;
  Best best{0, -1};
  for (int64_t i = threadIdx.x; i < op.pieces; i += kDrawThreads)
    best = larger(best, op.bests[row * op.pieces + i]);
  best = block_largest<kDrawWarps>(best, bests);
  if (!(how.temperature > 0) || best.id < 0 || best.z == INFINITY) {
    if (threadIdx.x == 0) op.ids[row] = best.id;
    return;
  }
  uint64_t least = 0;  // the least key that stays
  if (how.top_k > 0 && how.top_k < op.vocabulary) {
    least = cut(z, op.vocabulary, static_cast<uint64_t>(how.top_k), histogram, [](float) { return 1ull; });
  }
  if (how.top_p < 1) {
    unsigned long long sum = 0;
    for (int64_t i = threadIdx.x; i < op.vocabulary; i += kDrawThreads) {
      if (key_of(z[i], i) >= least) sum += mass_of(z[i], best.z);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
    if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < kDrawWarps; ++i) sum += totals[i];
    const double share = how.top_p > 0 ? static_cast<double>(how.top_p) * static_cast<double>(sum) : 0;
    const auto wanted = static_cast<unsigned long long>(ceil(share));
    const uint64_t by_mass = cut(z, op.vocabulary, wanted > 0 ? wanted : 1, histogram,
                                 [&](float value) { return mass_of(value, best.z); });
    least = by_mass > least ? by_mass : least;
  }
  // The likeliest token's score to begin with: most others cannot reach it.
  const auto likeliest = static_cast<uint32_t>(best.id);
  const auto words_of_best = words_of(how, likeliest / 4);
  Winner winner{gumbel_score(best.z, words_of_best[likeliest % 4]), best.id};
  for (int64_t four = threadIdx.x; 4 * four < op.vocabulary; four += kDrawThreads) {
    float values[4];
    bool open[4], any = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t id = 4 * four + i;
      values[i] = id < op.vocabulary ? z[id] : -INFINITY;
      open[i] = values[i] > -INFINITY && key_of(values[i], id) >= least &&
                static_cast<double>(values[i]) + kMostGumbel > winner.score &&
                (!(how.min_p > 0) || id == best.id || expf(values[i] - best.z) >= how.min_p);
      any = any || open[i];
    }
    if (!any) continue;
    const auto words = words_of(how, static_cast<uint32_t>(four));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!open[i]) continue;
      // z + g >= score needs 1 - v <= -log v <= exp(z - score), which one exponential tells; the margin is
      // F32's.
      const float rest = (static_cast<float>(~words[i]) + 0.5f) * 0x1p-32f;
      const auto behind = static_cast<float>(static_cast<double>(values[i]) - winner.score);
      if (rest > expf(behind) * (1.0f + 0x1p-14f)) continue;
      winner = better(winner, {gumbel_score(values[i], words[i]), static_cast<int32_t>(4 * four + i)});
    }
  }
  winner = warp_winner(winner);
  if (threadIdx.x % 32 == 0) winners[threadIdx.x / 32] = winner;
  __syncthreads();
  winner = warp_winner(winners[threadIdx.x % kDrawWarps]);
  if (threadIdx.x == 0) op.ids[row] = winner.id;
}

struct LogArguments {
  float* of_drawn;   // [S], or null
  int32_t* top_ids;  // [S, top], or null
  float* of_top;
  int64_t top_ids_stride, of_top_stride, top;
};

// Log-probabilities of the logits as given: of the token that was drawn, and of the largest.
__global__ void __launch_bounds__(kDrawThreads) sample_logs(SampleArguments op, LogArguments logs) {
  begin_kernel();
  QIAO_SHARED(Histogram, histogram, 1);
  QIAO_SHARED(double, shift_of, 1);
  QIAO_SHARED(unsigned, listed_count, 1);
  auto* listed = shared_memory<uint64_t>();  // [top]
  const int64_t row = blockIdx.x;
  const float temperature = row_of(op, row).logprob_temperature;
  const float* logits = op.logits + row * op.logits_stride;
  if (threadIdx.x == 0) {
    LogSumExp sum;
    for (int64_t i = 0; i < op.pieces; ++i) sum.add(op.sums[row * op.pieces + i]);
    shift_of[0] = sum.value();
    listed_count[0] = 0;
  }
  __syncthreads();
  const double shift = shift_of[0];
  const auto log_probability = [&](int64_t id) {
    if (id < 0 || logits[id] == -INFINITY) return -INFINITY;
    return static_cast<float>(static_cast<double>(logits[id] / temperature) - shift);
  };
  if (threadIdx.x == 0 && logs.of_drawn != nullptr) logs.of_drawn[row] = log_probability(op.ids[row]);
  if (logs.top_ids == nullptr) return;
  const uint64_t least =
      cut(logits, op.vocabulary, static_cast<uint64_t>(logs.top), histogram, [](float) { return 1ull; });
  for (int64_t i = threadIdx.x; i < op.vocabulary; i += kDrawThreads) {
    const uint64_t key = key_of(logits[i], i);
    if (key >= least) listed[atomicAdd(listed_count, 1u)] = key;
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < logs.top; i += kDrawThreads) {
    int64_t rank = 0;
    for (int64_t j = 0; j < logs.top; ++j) rank += listed[j] > listed[i] ? 1 : 0;
    const auto id = static_cast<int32_t>(~static_cast<uint32_t>(listed[i]));
    logs.top_ids[row * logs.top_ids_stride + rank] = id;
    logs.of_top[row * logs.of_top_stride + rank] = log_probability(id);
  }
}

struct SampleShape {
  int64_t rows, vocabulary, pieces, z_stride;
  explicit SampleShape(const Sample& op)
      : rows(op.logits.shape[0]),
        vocabulary(op.logits.shape[1]),
        pieces(ceil_div(vocabulary, kVocabularyPiece)),
        z_stride(ceil_div(vocabulary, 64) * 64) {}
  size_t z_bytes() const { return static_cast<size_t>(rows * z_stride) * sizeof(float); }
  size_t sums_bytes() const {
    return static_cast<size_t>(ceil_div(rows * pieces, 64) * 64) * sizeof(PieceSum);
  }
  size_t bytes() const {
    return z_bytes() + sums_bytes() + static_cast<size_t>(rows * pieces) * sizeof(Best);
  }
};

}  // namespace

size_t CudaBackend::workspace_bytes(const Sample& op) const { return SampleShape(op).bytes(); }

void CudaBackend::do_sample(const Sample& op) {
  const SampleShape shape(op);
  if (shape.rows == 0) return;
  const bool logs = op.log_probabilities.present() || op.top_ids.present();
  SampleArguments a{};
  a.logits = op.logits.as<float>(), a.logits_stride = op.logits.stride[0];
  a.vocabulary = shape.vocabulary, a.pieces = shape.pieces, a.z_stride = shape.z_stride;
  a.rows = op.rows.as<uint8_t>(), a.rows_stride = op.rows.stride[0];
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
  if (logs) a.sums = reinterpret_cast<PieceSum*>(workspace + shape.z_bytes());
  a.bests = reinterpret_cast<Best*>(workspace + shape.z_bytes() + shape.sums_bytes());
  a.ids = op.ids.as<int32_t>();
  const auto rows = static_cast<unsigned>(shape.rows),
             pieces = static_cast<unsigned>(shape.rows * shape.pieces);
  launch("sample", stream_, sample_copy, pieces, kPieceThreads, 0, a);
  if (op.history_ids.present() || op.bias_ids.present())
    launch("sample", stream_, sample_lists, rows, kPieceThreads, 0, a);
  launch("sample", stream_, sample_scale, pieces, kPieceThreads, 0, a);
  launch("sample", stream_, sample_draw, rows, kDrawThreads, 0, a);
  if (!logs) return;
  LogArguments to{};
  if (op.log_probabilities.present()) to.of_drawn = op.log_probabilities.as<float>();
  if (op.top_ids.present()) {
    to.top_ids = op.top_ids.as<int32_t>(), to.of_top = op.top_log_probabilities.as<float>();
    to.top_ids_stride = op.top_ids.stride[0], to.of_top_stride = op.top_log_probabilities.stride[0];
    to.top = op.top_ids.shape[1];
  }
  launch("sample", stream_, sample_logs, rows, kDrawThreads, static_cast<size_t>(to.top) * sizeof(uint64_t),
         a, to);
}

}  // namespace qiao::cuda
