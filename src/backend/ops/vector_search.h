#pragma once

#include "backend/ops/common.h"

namespace qiao {

enum class Metric : uint8_t {
  kDot,  // scores q · w, the largest first; of rows of length 1 that is the cosine
  kL2,   // scores |q - w|^2, the smallest first
};

inline constexpr int64_t kMostNeighbours = 1024;

// The k rows of a table that are nearest to each query, exactly: every row is looked at, in one pass over the
// table for so many queries at a time, and the scores are used up where they are made: memory grows with
// neither B * V nor V.
//   s[b, v] = queries[b] · table[v], Linear's bits in `compute`
//   kDot: the score is s
//   kL2:  max(0, (|q|^2 + squares[v]) - 2 s), each operation rounded to F32; |q|^2 of the query as `compute`
//         rounds it, added up in ascending order in float64 and rounded once
// Best first; of equal scores (0 and -0 are equal) the smaller id, and NaN after all numbers. So a query's
// results depend on it and the table alone: not on its batch, nor on how the table is cut.
// Bounds, with e Linear's for s: kDot: e; kL2: 2 e + gamma_4 * (|q|^2 + |squares[v]| + 2 |s|). An id that is
// not returned scores no better than the last that is, but for both scores' errors.
struct VectorSearch {
  Tensor queries;                 // F32 [B, C], rows contiguous
  const Weight* table = nullptr;  // [V, C], one expert
  Metric metric = Metric::kDot;
  Tensor squares;  // F32 [V]: |table[v]|^2, of kL2 alone (make_row_squares, backend/row_squares.h)
  Compute compute = Compute::kF32;  // of kL2 kF32 or kBF16
  Tensor scores;                    // F32 [B, k], rows contiguous; 1 <= k <= V and kMostNeighbours
  Tensor ids;                       // I32 [B, k], rows contiguous; no result overlaps anything
  Tensor workspace;                 // U8 [>= Backend::workspace_bytes(*this)]

  void check() const;
  double flops() const;
  double bytes() const;  // counts the table once
};

}  // namespace qiao
