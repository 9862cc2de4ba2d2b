#pragma once

#include "backend/ops/common.h"

namespace qiao {

// Of KvWrite's F8_E4M3: rows whose largest number is smaller are zeros; the largest scale.
inline constexpr float kF8Smallest = 0x1p-100f, kF8MostScale = 0x1p119f;

// Stores keys and values at their slots, rounded to the pages' dtype (nearest even). Slots of one call are
// distinct. Q8_0 keeps each 32 elements of a row of D as F16(s), s = min(65504, max |x| / 127), and whole
// numbers of eight bits n = clamp(round(x * (1 / F16(s))), -127, 127), all 0 where F16(s) is; each operation
// in F32 and rounded to nearest even. An element is then F16(s) * n, which is exact in F32: |error| <= F16(s)
// / 2 where nothing is clamped. A NaN makes all 32 NaN.
// F8_E4M3 keeps a row of D as F32 s and D numbers of E4M3, n = x / s to nearest even, of at most 448 either
// way. s is the least power of two with max|x| <= 448 s, but 2^119 at most (448 s is finite: what is larger,
// infinity too, becomes 448 s or -448 s), and 0, with all n zeros of x's sign, where max|x| < 2^-100. So s n
// is exact in F32 and in BF16, and |error| <= max(|x| / 16, s / 1024) for |x| <= 448 s, or |x| where s is 0:
// a floating-point format loses nothing by a power of two that max|x| / 448 would keep. A row has its own s,
// as keys of one token may be a hundred times another's, and no page is ever written again for a larger one.
// A NaN makes s and all n NaN (n = 0x7f).
struct KvWrite {
  Tensor k, v;   // F32 [T, G, D], last dimension contiguous
  Tensor slots;  // I32 [T], each in [0, P * page_tokens): the producer's duty
  KvPages* pages = nullptr;

  void check() const;
  double flops() const { return 0; }
  double bytes() const;
};

// Causal attention of new tokens over paged keys and values (prefill chunk, decode, mixed batches; GQA).
// Sequence s owns queries [query_starts[s], query_starts[s+1]); they are its last ones: query i of n has
// position p = lengths[s] - n + i and sees keys j in (p - window, p] (window 0: all of [0, p]). Token j of s
// lies in page page_table[s, j / page_tokens] at offset j mod page_tokens; its key is already written, the
// queries' own last of all. page_table, lengths and query_starts are uploaded, never an op's result: a chip
// may read them, and the other keys, while ops given since the upload still run.
//   score_j = soft_cap(scale * q·k_j);  out = sum_j exp(score_j - max) v_j / sum_j exp(score_j - max)
// Query head h reads key/value head h / (H / G). Accumulation is F32, in an order that depends on p, window
// and the head alone (never on the chunk, batch or page placement): keys in ascending blocks of a fixed size
// aligned to j = 0. Bound: (exp(2 gamma_(D+16) * B) - 1 + gamma_(2n+16)) * sum_j p_j |v_j|, where
// B = max_j |scale| (|q|·|k_j|), n the keys seen, p_j their probabilities. Derivation: a score errs by
// gamma_D B from its dot product, 1 u from the scale, 6 u from the soft-cap, 2 u from subtracting the maximum
// and 4 u from a change to base 2 (D + 13, taken as D + 16), which moves exp and, through the sum, the
// quotient by twice that in the exponent; summing n terms and rescaling a running sum at most each second
// key, by factors of a few u, is gamma_2n; 16 u for exponentials and the division. At most 2^-126 more where
// a unit flushes.
// kBF16, over pages of F16, BF16 or F8_E4M3 (others: as kF32): q and the weights exp(score - max) may be
// rounded to the pages' dtype before a product, by r = 2^-11 or 2^-8, over F8_E4M3 to BF16, by 2^-8; keys and
// values are of it as they are, sums stay F32. F16's subnormals miss a part of q by 2^-25 of its row's
// largest, where rows are brought to F16's range by a power of two, and a weight by 2^-25 of the largest.
// Bound: (exp(2 E) (1 + r) (1 + gamma_(2n+16)) - 1)
// * sum_j p_j |v_j| + 2^-126, with a score's error E = ((1 + r)(1 + gamma_(D+16)) - 1) * B; for F16 E is
// 2^-24 * max_j |scale| max|q| sum_d |k_j| more and the bound 2^-24 * sum_j |v_j|. (q's rounding moves a
// score by r B; a weight's its part of the result by r; the sum of weights is of those that were not
// rounded.)
struct AttentionPaged {
  Tensor q;  // F32 [T, H, D], last dimension contiguous
  const KvPages* pages = nullptr;
  // I32 [S, M]. Entries behind s's last token have any value, and so have those of pages that none of its
  // queries sees, since they end before the first one's window.
  Tensor page_table;
  Tensor lengths;       // I32 [S]: tokens of s in the cache, this step's included
  Tensor query_starts;  // I32 [S + 1], ascending from 0 to T
  int64_t window = 0;   // 0: unlimited
  float scale = 1.0f;
  float soft_cap = 0.0f;            // 0: none
  Compute compute = Compute::kF32;  // or kBF16
  Tensor out;                       // F32 [T, H, D], last dimension contiguous; may alias q exactly
  Tensor workspace;

  void check() const;
  // Contexts lie on the device: the caller tells the (query, key) pairs, for benches.
  double flops(int64_t pairs) const;
  double bytes(int64_t keys) const;
};

}  // namespace qiao
