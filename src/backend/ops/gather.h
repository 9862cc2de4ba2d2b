#pragma once

#include "backend/ops/common.h"

namespace qiao {

// out[t, :] = scale * dequantize(table[ids[t], :]), each product rounded once to F32.
// Bound: |error| <= u * |out| with u = 2^-24 (the dequantized value is exact to F32's rounding; see
// linear.h).
struct Gather {
  const Weight* table = nullptr;  // [V, C], one expert
  Tensor ids;                     // I32 [T], each in [0, V): the producer's duty
  float scale = 1.0f;             // Gemma's sqrt(C)
  Tensor out;                     // F32 [T, C], rows contiguous

  void check() const;
  double flops() const;
  double bytes() const;  // read and written, the least possible
};

// out[s, :] = x[rows[s], :]. Exact.
struct GatherRows {
  Tensor x;     // F32 [T, C], rows contiguous
  Tensor rows;  // I32 [S], each in [0, T): the producer's duty
  Tensor out;   // F32 [S, C], rows contiguous; does not overlap x

  void check() const;
  double flops() const { return 0; }
  double bytes() const;
};

// Gradient of Gather: dtable[ids[t], :] += scale * dout[t, :], for ascending t. dtable is canonical
// (row-major). Bound: gamma_(n + 1) * (|scale| * sum |dout| + |before|) + n * 2^-126 of the n rows that one
// row of the table meets. dtable overlaps nothing.
struct GatherBackward {
  Tensor ids;  // I32 [T], each in [0, V): the producer's duty
  float scale = 1.0f;
  Tensor dout;    // F32 [T, C], rows contiguous
  Tensor dtable;  // F32 [V, C], dense

  void check() const;
  double flops() const;
  double bytes() const;
};

}  // namespace qiao
