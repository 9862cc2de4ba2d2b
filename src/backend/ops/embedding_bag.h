#pragma once

#include "backend/ops/common.h"

namespace qiao {

// Sums of a table's rows, bag by bag: bag b has the places i in [offsets[b], offsets[b + 1]) of `ids`.
//   out[b, :] = sum_i weights[i] * table[ids[i], :], over the bag's places in ascending order, in F32;
//   with `mean` over the number of them, rounded once more. A bag without rows gives zeros.
// An id outside [0, V) has no part in its bag and is not counted (-1 pads, as torch.nn.EmbeddingBag's
// padding_idx does). Offsets ascend from 0 or more to n or less: the producer's duty; where they do not, what
// is in `out` is anybody's, but nothing outside the tensors is read or written. A bag's bits depend on that
// bag alone. Of m rows: |error| <= gamma_(m + 2) * sum |weights[i] table[ids[i], c]| (over m for a mean)
// + m * 2^-126, with u and gamma as in linear.h. (torch.nn.functional.embedding_bag, mode sum and mean.)
struct EmbeddingBag {
  Tensor table;    // F32, F16 or BF16 [V, C], rows contiguous: canonical, as an optimizer writes its rows
  Tensor ids;      // I32 [n]
  Tensor offsets;  // I32 [B + 1]
  Tensor weights;  // F32 [n], or absent (1 each); not with mean
  bool mean = false;
  Tensor out;  // F32 [B, C], rows contiguous; overlaps nothing

  void check() const;
  double flops() const;
  double bytes() const;  // as if each place read a row of its own
};

// Gradients of EmbeddingBag. That of the table is of the rows that were met alone, as a dense matrix that is
// added to (GatherBackward's way) or as rows of their own, for a table whose gradient would not fit:
//   dtable[v, :] += sum_i weights[i] * dout[b(i), :] over the places i with ids[i] = v, ascending, or in
//     runs of places, each ascending, and then their sums;
//   drows[r, :] is the same sum, without what was there, of row row_ids[r]: the ids that were met, ascending
//     and each once, then -1, whose rows of drows are left as they were;
//   dweights[i] = dout[b(i), :] · table[ids[i], :], in an order of C alone; 0 where ids[i] has no part.
// With `mean` 1 / (the bag's rows), rounded, stands for weights[i]. No atomics: the same bits each time.
// Bounds, of m places that meet row v:
//   dtable, drows: gamma_(m + 2) * (sum |weights[i] dout| + |before|) + m * 2^-126
//   dweights:      gamma_(C + 1) * sum_c |dout table| + C * 2^-126
struct EmbeddingBagBackward {
  Tensor table;  // F32, F16 or BF16 [V, C], rows contiguous: read for dweights alone
  Tensor ids;
  Tensor offsets;
  Tensor weights;
  bool mean = false;
  Tensor dout;       // F32 [B, C], rows contiguous
  Tensor dtable;     // F32 [V, C], dense, or absent
  Tensor drows;      // F32 [n, C], dense, or absent
  Tensor row_ids;    // I32 [n], with drows
  Tensor dweights;   // F32 [n], or absent; no result overlaps anything
  Tensor workspace;  // U8 [>= Backend::workspace_bytes(*this)]

  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
