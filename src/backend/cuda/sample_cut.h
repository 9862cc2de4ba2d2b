// What sample cuts with: keys that order a row's logits, histograms of their digits from the highest on, and
// lists of keys, which are sorted in shared memory where they are few. Weights are whole numbers (one a
// logit, or exp in fixed point), keys are distinct, so nothing depends on which thread comes first. Blocks of
// kCutThreads.
#pragma once

#include "backend/cuda/kernel.h"

namespace qiao::cuda {

inline constexpr int kCutThreads = 512, kCutWarps = kCutThreads / 32;
inline constexpr unsigned kDigits = 2048, kMostSorted = 1024;
inline constexpr int kDigitBits = 11, kHighestShift = 53;
inline constexpr float kMassOne = 0x1p40f;  // 1 in fixed point: a vocabulary's sum fits 64 bits

using Whole = unsigned long long;  // keys and weights, as atomics take them

// Keys grow with the logit and, among equals, with smaller ids; all of a row are distinct. NaN lies below
// all.
__device__ inline Whole key_of(float z, int64_t id, int64_t vocabulary) {
  const uint32_t bits = __float_as_uint(z);
  uint32_t rank = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  if (bits == 0x80000000u) rank = 0x80000000u;  // -0 is 0
  if (z != z) rank = 0;
  return Whole{rank} << 32 | static_cast<uint32_t>(vocabulary - 1 - id);
}
__device__ inline float z_of(Whole key) {
  const auto rank = static_cast<uint32_t>(key >> 32);
  return __uint_as_float((rank >> 31) != 0 ? rank ^ 0x80000000u : ~rank);
}
__device__ inline int32_t id_of(Whole key, int64_t vocabulary) {
  return static_cast<int32_t>(vocabulary - 1 - static_cast<int64_t>(key & 0xffffffffu));
}

// exp(z - largest), and what of a sum of them top-p wants.
__device__ inline Whole mass_of(float z, float largest) {
  return z > -INFINITY ? static_cast<Whole>(expf(z - largest) * kMassOne) : 0;
}
__device__ inline Whole wanted_mass(float top_p, Whole sum) {
  const double share = top_p > 0 ? static_cast<double>(top_p) * static_cast<double>(sum) : 0;
  const auto wanted = static_cast<Whole>(ceil(share));
  return wanted > 0 ? wanted : 1;
}

// Weights of digits in shared memory, in halves: a 64-bit atomic is a loop there.
struct DigitWeights {
  unsigned low[kDigits], high[kDigits];

  __device__ Whole of(unsigned digit) const { return Whole{high[digit]} << 32 | low[digit]; }
};
__device__ inline void clear(DigitWeights* digits) {
  for (unsigned i = threadIdx.x; i < kDigits; i += kCutThreads) digits->low[i] = digits->high[i] = 0;
}

// Adds each lane's weight to its digit's, and one to counts[digit], where counts are asked for and the weight
// is not 0. By a whole warp, whose equals (all of them, where a row is flat) take one atomic.
__device__ inline void tally(DigitWeights* digits, unsigned* counts, unsigned digit, Whole weight) {
  const uint32_t some = __ballot_sync(kAllLanes, weight != 0);
  if (some == 0) return;
  const unsigned first = __shfl_sync(kAllLanes, digit, __ffs(static_cast<int>(some)) - 1);
  unsigned count = 1;
  if (__all_sync(kAllLanes, weight == 0 || digit == first)) {
    weight = warp_sum(weight), count = static_cast<unsigned>(__popc(some)), digit = first;
    if (threadIdx.x % 32 != 0) return;
  }
  if (weight == 0) return;
  const auto low = static_cast<unsigned>(weight);
  const unsigned before = atomicAdd(&digits->low[digit], low);
  const unsigned high = static_cast<unsigned>(weight >> 32) + (before + low < before ? 1 : 0);
  if (high != 0) atomicAdd(&digits->high[digit], high);
  if (counts != nullptr) atomicAdd(&counts[digit], count);
}

// Of the places 0 to kOwn * kCutThreads - 1, the first whose weights with those before reach `wanted`; the
// last of all where none does.
struct FoundPlace {
  unsigned place;
  Whole before, weight;  // of the places before, of this one
  Whole wanted;
};
template <int kOwn, class WeightAt, class WantedOf>
__device__ FoundPlace find_place(WeightAt weight_at, WantedOf wanted_of) {
  QIAO_SHARED(Whole, of_warp, kCutWarps);
  QIAO_SHARED(FoundPlace, found, 1);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Whole own[kOwn], sum = 0;
#pragma unroll
  for (unsigned i = 0; i < kOwn; ++i) {
    own[i] = weight_at(threadIdx.x * kOwn + i);
    sum += own[i];
  }
  Whole until = sum;
#pragma unroll
  for (unsigned lanes = 1; lanes < 32; lanes *= 2) {
    const Whole other = __shfl_up_sync(kAllLanes, until, lanes);
    if (lane >= lanes) until += other;
  }
  if (lane == 31) of_warp[warp] = until;
  __syncthreads();
  Whole before = until - sum, total = 0;
#pragma unroll
  for (unsigned w = 0; w < kCutWarps; ++w) {
    if (w < warp) before += of_warp[w];
    total += of_warp[w];
  }
  const Whole wanted = wanted_of(total);
  bool here = before < wanted && (wanted <= before + sum || threadIdx.x == kCutThreads - 1);
#pragma unroll
  for (unsigned i = 0; i < kOwn; ++i) {
    if (here && (wanted <= before + own[i] || i == kOwn - 1)) {
      found[0] = {threadIdx.x * kOwn + i, before, own[i], wanted};
      here = false;
    }
    before += own[i];
  }
  __syncthreads();
  return found[0];
}

// Batcher's network, all of whose comparisons put the larger key first, so that what lies beyond the end
// needs no place.
__device__ inline void sort_descending(Whole* keys, int64_t count) {
  const auto end = static_cast<uint32_t>(count);
  for (uint32_t size = 2; size / 2 < end; size *= 2) {
    for (uint32_t half = size / 2; half > 0; half /= 2) {
      const uint32_t flip = half == size / 2 ? size - 1 : half;
      for (uint32_t t = threadIdx.x;; t += kCutThreads) {
        const uint32_t i = 2 * (t & ~(half - 1)) | (t & (half - 1)), j = i ^ flip;
        if (i >= end) break;
        if (j >= end) continue;
        const Whole a = keys[i], b = keys[j];
        if (a < b) keys[i] = b, keys[j] = a;
      }
      __syncthreads();
    }
  }
}

// Where keys come from: a row's logits, or a list.
struct RowKeys {
  const float* row;
  int64_t count;  // the vocabulary

  using Raw = float;
  __device__ float load(int64_t i) const { return row[i]; }
  __device__ Whole key(float raw, int64_t i) const { return key_of(raw, i, count); }
};
struct ListKeys {
  const Whole* list;
  int64_t count;

  using Raw = Whole;
  __device__ Whole load(int64_t i) const { return __ldcg(list + i); }
  __device__ Whole key(Whole raw, int64_t) const { return raw; }
};

// Calls body(true, key) for every key and, so that warps are whole, body(false, ..) beyond the last.
template <class Keys, class Body>
__device__ void for_keys(const Keys& keys, Body body) {
  constexpr int kAtOnce = 8;  // loads on their way
  for (int64_t base = threadIdx.x; base - threadIdx.x < keys.count; base += kAtOnce * kCutThreads) {
    typename Keys::Raw raw[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int64_t i = base + j * kCutThreads;
      raw[j] = i < keys.count ? keys.load(i) : typename Keys::Raw{};
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int64_t i = base + j * kCutThreads;
      body(i < keys.count, keys.key(raw[j], i));
    }
  }
}

struct CutMemory {
  Whole list[kMostSorted];
  DigitWeights digits;
  unsigned listed;

  static_assert(sizeof(Whole) * kMostSorted >= sizeof(unsigned) * kDigits);
  __device__ unsigned* counts() { return reinterpret_cast<unsigned*>(list); }  // until something is listed
};

// Puts the keys for which wants(key) is true, of which there are at most as many as fit, into `list`, sorted;
// returns how many there are.
template <class Keys, class Wants>
__device__ unsigned list_keys(const Keys& keys, Whole* list, CutMemory* memory, Wants wants) {
  if (threadIdx.x == 0) memory->listed = 0;
  __syncthreads();
  for_keys(keys, [&](bool inside, Whole key) {
    if (inside && wants(key)) list[atomicAdd(&memory->listed, 1u)] = key;
  });
  __syncthreads();
  sort_descending(list, memory->listed);
  return memory->listed;
}

// Keys from `least` on, of which the digit at `shift` is the next to be found; all have the same bits from
// `end` on.
struct DigitRange {
  Whole least;
  int end, shift;
};
__device__ inline DigitRange all_keys() { return {0, 64, kHighestShift}; }
// Those that share the digit that was found. Ids have fewer bits than there is room for.
__device__ inline DigitRange keys_of_digit(const DigitRange& range, unsigned digit, int64_t vocabulary) {
  const int id_bits = 32 - __clz(static_cast<int>(vocabulary - 1));
  const int next = range.shift > 32    ? max(32, range.shift - kDigitBits)
                   : range.shift == 32 ? max(0, id_bits - kDigitBits)
                                       : max(0, range.shift - kDigitBits);
  return {range.least + (Whole{digit} << range.shift), range.shift, next};
}

// What a key weighs in a cut: one, or exp(z - largest) in fixed point; below `least` nothing.
struct KeyWeight {
  bool is_mass;
  float largest;
  Whole least;

  __device__ Whole operator()(Whole key) const {
    return key < least ? 0 : is_mass ? mass_of(z_of(key), largest) : 1;
  }
};

// The largest key of a list, whose first `count` are sorted, such that the weights of it and of those before
// reach what is wanted of them: `wanted` > 0, or where that is 0 the share top_p of their sum.
__device__ inline Whole cut_list(const Whole* list, unsigned count, KeyWeight weight_of, Whole wanted,
                                 float top_p) {
  const FoundPlace found = find_place<kMostSorted / kCutThreads>(
      [&](unsigned i) { return i < count ? weight_of(list[i]) : 0; },
      [&](Whole sum) { return wanted > 0 ? wanted : wanted_mass(top_p, sum); });
  return list[found.place];
}

// The same of keys in `range`: a pass over them a digit, until those left can be sorted. One block for all of
// them: it is what rows take of which many logits are alike.
template <class Keys>
QIAO_NO_INLINE __device__ Whole cut_keys(Keys keys, int64_t vocabulary, DigitRange range, CutMemory* memory,
                                         KeyWeight weight_of, Whole wanted, float top_p) {
  for (;;) {
    clear(&memory->digits);
    for (unsigned i = threadIdx.x; i < kDigits; i += kCutThreads) memory->counts()[i] = 0;
    __syncthreads();
    const Whole digits = Whole{1} << min(kDigitBits, range.end - range.shift);
    for_keys(keys, [&](bool inside, Whole key) {
      const Whole digit = (key - range.least) >> range.shift;
      inside = inside && digit < digits;
      tally(&memory->digits, memory->counts(), inside ? static_cast<unsigned>(digit) : 0,
            inside ? weight_of(key) : 0);
    });
    __syncthreads();
    const FoundPlace found = find_place<kDigits / kCutThreads>(
        [&](unsigned place) { return memory->digits.of(kDigits - 1 - place); },
        [&](Whole sum) { return wanted > 0 ? wanted : wanted_mass(top_p, sum); });
    const unsigned digit = kDigits - 1 - found.place;
    const bool few = memory->counts()[digit] <= kMostSorted, is_last = range.shift == 0;
    range = keys_of_digit(range, digit, vocabulary);
    wanted = found.wanted - found.before;
    if (is_last) return range.least;
    __syncthreads();  // the counts are read
    if (!few) continue;
    const unsigned listed = list_keys(keys, memory->list, memory, [&](Whole key) {
      return (key - range.least) >> range.end == 0 && weight_of(key) != 0;
    });
    return cut_list(memory->list, listed, weight_of, wanted, 0);
  }
}

}  // namespace qiao::cuda
