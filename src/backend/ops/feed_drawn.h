#pragma once

#include "backend/ops/common.h"

namespace qiao {

// A step's tokens that another step has drawn, put in their places where no host has seen them: tokens[t] =
// max(ids[from[t]], 0) where from[t] >= 0; the others stay. An id of -1 (Sample: none could be drawn) counts
// as 0: what is computed behind it is nobody's, and reads no row that is not there. Exact.
struct FeedDrawn {
  Tensor ids;     // I32 [R]
  Tensor from;    // I32 [T], each in [-1, R): the producer's duty
  Tensor tokens;  // I32 [T], overlaps neither

  void check() const;
  double bytes() const;
};

}  // namespace qiao
