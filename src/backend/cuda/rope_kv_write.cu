// rope_kv_write: what lies between qkv's product and attention, read once and written once. A row (a head of
// a token) belongs to neighbouring lanes, a power of two of them, each with four of its elements (of heads
// beyond 128 with four more, 128 further on), so that its sum of squares is folded as norm.cu does for that
// width. In halves the other elements of a lane's pairs are another lane's, and both turn by the same four
// angles: each makes the cosines and sines of two. A block has some rows of one token, in order: queries,
// keys, values. Few tokens wait for memory once, all loads on their way together, one row a lane; many are
// limited by the memory's bandwidth and have four rows a lane (two of wide heads), so that cosines are made
// less often. Saved: in a layer of a decoding step one launch of two, with norms of queries and keys three of
// four, 2 to 3 us each; in prefill memory: of 2048 tokens of an 8B (H = 32, G = 8, D = 128, pages of F16) 109
// MB become 92, with norms 193 do. Prediction: 2 us for one token, 25 us for 2048. Not yet run on a device.
#include "backend/ops/rope_kv_write.h"

#include "backend/cuda/cuda_class.h"
#include "backend/cuda/kv_rows.h"
#include "backend/cuda/norm_rows.h"
#include "backend/cuda/rope_turn.h"

namespace qiao::cuda {
namespace {

constexpr int kKeepThreads = 128;
constexpr int kFarFour = 128;     // from a lane's first four elements to its others
constexpr int64_t kFewKept = 64;  // tokens with one row a lane

struct HeadRows {
  float* data;
  int64_t token_stride, head_stride;
  int heads;
};

struct RopeKvArguments {
  HeadRows q, k, v;
  RowNorm q_norm, k_norm;
  bool norms_after;
  const int32_t* positions;
  const float* inverse_frequencies;
  int pairs;  // 0: nothing is rotated
  bool halves;
  float scale;
  const int32_t* slots;
  KvLayout pages;
  int lane_bits;  // of the lanes of a row
};

enum class HeadKind : uint8_t { kQuery, kKey, kValue, kNone };

// A row of a token's, and a lane's elements of it.
template <int kFours>
struct HeadRow {
  HeadKind kind = HeadKind::kNone;
  int head = 0;
  float* data = nullptr;
  float x[kFours][4];
  float4 gammas[kFours];

  __device__ float4 four(int j) const { return make_float4(x[j][0], x[j][1], x[j][2], x[j][3]); }
  __device__ void set(int j, float4 v) { x[j][0] = v.x, x[j][1] = v.y, x[j][2] = v.z, x[j][3] = v.w; }
  // What is normed and turned; what goes to the pages.
  __device__ bool scores() const { return kind == HeadKind::kQuery || kind == HeadKind::kKey; }
  __device__ bool kept() const { return kind == HeadKind::kKey || kind == HeadKind::kValue; }

  // `first`: of the lane's elements.
  __device__ void load(const RopeKvArguments& op, int64_t token, int number, int first) {
    const bool is_query = number < op.q.heads, is_key = !is_query && number < op.q.heads + op.k.heads;
    head = number - (is_query ? 0 : is_key ? op.q.heads : op.q.heads + op.k.heads);
    kind = is_query            ? HeadKind::kQuery
           : is_key            ? HeadKind::kKey
           : head < op.v.heads ? HeadKind::kValue
                               : HeadKind::kNone;
    const HeadRows& of = is_query ? op.q : is_key ? op.k : op.v;
    const int width = kind == HeadKind::kNone ? 0 : op.pages.dim;
    data = of.data + token * of.token_stride + head * of.head_stride;
    const float* gamma = is_query ? op.q_norm.gamma : is_key ? op.k_norm.gamma : nullptr;
#pragma unroll
    for (int j = 0; j < kFours; ++j) {
      set(j, four_at<true>(data, first + j * kFarFour, width, true));
      gammas[j] = four_at<true>(gamma, first + j * kFarFour, gamma == nullptr ? 0 : width, true);
    }
  }

  // All lanes of a warp come here, since those of a row ask each other.
  __device__ void norm(const RopeKvArguments& op) {
    if (!op.q_norm.present && !op.k_norm.present) return;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kFours; ++j) sum = add_squares(four(j), sum);
#pragma unroll
    for (int bit = 4; bit >= 0; --bit) {
      if (bit < op.lane_bits) sum += __shfl_xor_sync(kAllLanes, sum, 1 << bit);
    }
    const RowNorm& by = kind == HeadKind::kQuery ? op.q_norm : op.k_norm;
    if (!by.present || !scores()) return;
    const float factor = norm_factor(sum, op.pages.dim, by.epsilon);
#pragma unroll
    for (int j = 0; j < kFours; ++j) {
      set(j, normed(four(j), factor, gain(by.gamma == nullptr, gammas[j], by.gamma_offset)));
    }
  }
};

// What a lane's elements turn by.
template <int kFours>
struct LaneTurns {
  int position;
  float frequencies[kFours][2];  // of the two turns that it makes for each four; 0 where none are
  float cosine[kFours][4], sine[kFours][4];
  int source;   // in halves, of the first four: the lane with the other elements of the pairs
  bool within;  // heads of 256 that turn whole: they are the lane's own other four

  // All lanes of a warp come here.
  __device__ float other(const float (&x)[kFours][4], int j, int i) const {
    if constexpr (kFours == 2) {
      if (within) return x[1 - j][i];
      if (j == 1) return x[j][i];  // turns not at all
    }
    return __shfl_sync(kAllLanes, x[j][i], source);
  }

  __device__ void load(const RopeKvArguments& op, int64_t token, int first) {
    position = op.positions[token];
#pragma unroll
    for (int j = 0; j < kFours; ++j) {
      const int at = first + j * kFarFour;
      const int pair = !op.halves ? at / 2 : at < op.pairs ? at : at - op.pairs + 2;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool turns = at < 2 * op.pairs && pair + i < op.pairs;
        frequencies[j][i] = turns ? op.inverse_frequencies[pair + i] : 0.0f;
      }
    }
  }

  __device__ void make(const RopeKvArguments& op, int first) {
    const int lane = static_cast<int>(threadIdx.x % 32), step = op.pairs / 4;
    source = first >= 2 * op.pairs ? lane : first < op.pairs ? lane + step : lane - step;
    within = 2 * op.pairs > kFarFour;
    float made[kFours][4];  // two cosines and their sines
#pragma unroll
    for (int j = 0; j < kFours; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Turn by = turn_of(position, frequencies[j][i], op.scale, op.scale);
        made[j][i] = by.cosine, made[j][2 + i] = by.sine;
      }
    }
#pragma unroll
    for (int j = 0; j < kFours; ++j) {
      const bool second = first + j * kFarFour >= op.pairs;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float c = made[j][i], s = made[j][2 + i];
        if (op.halves) {
          const float other_c = other(made, j, i), other_s = other(made, j, 2 + i);
          cosine[j][i] = second ? other_c : c, cosine[j][2 + i] = second ? c : other_c;
          sine[j][i] = second ? other_s : -s, sine[j][2 + i] = second ? s : -other_s;
        } else {
          cosine[j][2 * i] = cosine[j][2 * i + 1] = c;
          sine[j][2 * i] = -s, sine[j][2 * i + 1] = s;
        }
      }
    }
  }

  // All lanes of a warp come here.
  __device__ void turn(const RopeKvArguments& op, int first, HeadRow<kFours>& row) const {
    float others[kFours][4];
#pragma unroll
    for (int j = 0; j < kFours; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) others[j][i] = op.halves ? other(row.x, j, i) : row.x[j][i ^ 1];
    }
    if (!row.scores()) return;
#pragma unroll
    for (int j = 0; j < kFours; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first + j * kFarFour + i < 2 * op.pairs) {
          row.x[j][i] = turned(row.x[j][i], others[j][i], cosine[j][i], sine[j][i]);
        }
      }
    }
  }
};

// All lanes of a warp come here.
template <DType kDType, int kFours>
__device__ void keep_row(const RopeKvArguments& op, int slot, int first, const HeadRow<kFours>& row) {
  const bool kept = row.kept();
  if (__any_sync(kAllLanes, kept ? 1 : 0) == 0) return;
  const KvPlace place = kv_place(op.pages, slot, kept ? row.head : 0, row.kind == HeadKind::kValue);
  float scale = 0;
  if constexpr (kDType == DType::kF8_E4M3) {
    float most = 0;
#pragma unroll
    for (int j = 0; j < kFours; ++j) most = larger_or_nan(largest_of(row.x[j]), most);
    scale = f8_scale(largest_of_lanes(most, 1 << op.lane_bits));
    if (kept && first == 0) *place.scale = scale;
  }
#pragma unroll
  for (int j = 0; j < kFours; ++j) {
    const int at = first + j * kFarFour;
    const bool active = kept && at < op.pages.dim;
    if constexpr (kDType == DType::kQ8_0) {
      store_kv_q8(row.x[j], at, op.pages.dim, place.row, active);
    } else if (active) {
      if constexpr (kDType == DType::kF8_E4M3) {
        store_kv_f8(row.x[j], scale, at, place.row);
      } else {
        store_kv<kDType>(row.x[j], at, place.row);
      }
    }
  }
}

template <DType kDType, int kFours, int kOwn>
__global__ void __launch_bounds__(kKeepThreads) rope_kv_write_kernel(RopeKvArguments op) {
  begin_kernel();
  const int64_t token = blockIdx.x;
  const int slot = op.slots[token];
  const int thread = static_cast<int>(threadIdx.x), rows_at_once = kKeepThreads >> op.lane_bits;
  const int first = 4 * (thread & ((1 << op.lane_bits) - 1));
  LaneTurns<kFours> turns = {};
  if (op.pairs > 0) turns.load(op, token, first);
  HeadRow<kFours> rows[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int number = (static_cast<int>(blockIdx.y) * kOwn + i) * rows_at_once + (thread >> op.lane_bits);
    rows[i].load(op, token, number, first);
  }
  if (op.pairs > 0) turns.make(op, first);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    HeadRow<kFours>& row = rows[i];
    if (!op.norms_after) row.norm(op);
    if (op.pairs > 0) turns.turn(op, first, row);
    if (op.norms_after) row.norm(op);
    if (row.kind == HeadKind::kQuery) {
#pragma unroll
      for (int j = 0; j < kFours; ++j) {
        const int at = first + j * kFarFour;
        if (at < op.pages.dim) *reinterpret_cast<float4*>(row.data + at) = row.four(j);
      }
    }
    keep_row<kDType>(op, slot, first, row);
  }
}

HeadRows head_rows(const Tensor& t) {
  return {t.as<float>(), t.stride[0], t.stride[1], static_cast<int>(t.shape[1])};
}

// Whole vectors of 16 bytes, and pairs in halves that lie as LaneTurns has them.
bool keeps_in_one(const RopeKvWrite& op, const RopeKvArguments& a) {
  const auto vectors = [](const Tensor& t) {
    return aligned_16(t.data) && t.stride[0] % 4 == 0 && t.stride[1] % 4 == 0;
  };
  const int turning = 2 * a.pairs;
  const bool pairs_fit = !a.halves || (a.pairs % 4 == 0 && (turning <= kFarFour || turning == 2 * kFarFour));
  return a.pages.dim % 8 == 0 && vectors(op.q) && vectors(op.k) && vectors(op.v) && a.q_norm.gamma_aligned &&
         a.k_norm.gamma_aligned && pairs_fit;
}

}  // namespace

void CudaBackend::do_rope_kv_write(const RopeKvWrite& op) {
  RopeKvArguments a{head_rows(op.q),
                    head_rows(op.k),
                    head_rows(op.v),
                    row_norm(op.q_norm),
                    row_norm(op.k_norm),
                    op.norms_after,
                    op.rotates() ? op.positions.as<int32_t>() : nullptr,
                    op.rotates() ? op.inverse_frequencies.as<float>() : nullptr,
                    op.rotates() ? static_cast<int>(op.inverse_frequencies.shape[0]) : 0,
                    op.layout == Rope::Layout::kHalf,
                    op.scale,
                    op.slots.as<int32_t>(),
                    static_cast<const CudaKvPages&>(*op.pages).layout(),
                    0};
  if (!keeps_in_one(op, a)) return Backend::do_rope_kv_write(op);
  static_cast<CudaKvPages&>(*op.pages).wrote(op.slots.shape[0], stream_.holds());
  while (a.lane_bits < 5 && (4 << a.lane_bits) < a.pages.dim) ++a.lane_bits;
  const int64_t tokens = op.slots.shape[0], rows = a.q.heads + a.k.heads + a.v.heads;
  const auto run = [&](auto dtype) {
    const auto go = [&](auto fours, auto own) {
      const dim3 grid(static_cast<unsigned>(tokens), blocks_for(rows, own() * (kKeepThreads >> a.lane_bits)));
      launch("rope_kv_write", stream_, rope_kv_write_kernel<dtype(), fours(), own()>, grid, kKeepThreads, 0,
             a);
    };
    constexpr std::integral_constant<int, 1> kOne;
    constexpr std::integral_constant<int, 2> kTwo;
    constexpr std::integral_constant<int, 4> kFour;
    const bool few = tokens <= kFewKept;
    if (a.pages.dim > kFarFour) return few ? go(kTwo, kOne) : go(kTwo, kTwo);
    few ? go(kOne, kOne) : go(kOne, kFour);
  };
  switch (op.pages->spec().dtype) {
    case DType::kF32:
      return run(std::integral_constant<DType, DType::kF32>());
    case DType::kF16:
      return run(std::integral_constant<DType, DType::kF16>());
    case DType::kBF16:
      return run(std::integral_constant<DType, DType::kBF16>());
    case DType::kF8_E4M3:
      return run(std::integral_constant<DType, DType::kF8_E4M3>());
    default:
      return run(std::integral_constant<DType, DType::kQ8_0>());
  }
}

}  // namespace qiao::cuda
