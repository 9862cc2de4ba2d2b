#pragma once

#include "backend/ops/attention.h"
#include "backend/ops/norm.h"
#include "backend/ops/rope.h"

namespace qiao {

// What attention does to its projections, in one op: queries and keys are normed head by head and rotated,
// each where asked for, then keys and values are kept. Afterwards q holds what attention reads and the pages
// hold keys and values; what k and v hold then is unspecified. The very bits of the ops apart:
//   q = AddRmsNorm(q), k = AddRmsNorm(k)   where q_norm, k_norm are present
//   q, k = Rope(q, k)                      where there are frequencies; with norms_after before those
//   pages[slots] = KvWrite(k, v)
struct RopeKvWrite {
  Tensor q;                // F32 [T, H, D], last dimension contiguous, in place
  Tensor k, v;             // F32 [T, G, D], last dimension contiguous
  RmsNorm q_norm, k_norm;  // gamma: F32 [D] or absent
  bool norms_after = false;
  Tensor positions;            // I32 [T]
  Tensor inverse_frequencies;  // F32 [R / 2]; both absent: nothing is rotated
  Rope::Layout layout = Rope::Layout::kHalf;
  float scale = 1.0f;
  Tensor slots;  // as KvWrite's
  KvPages* pages = nullptr;

  void check() const;
  double flops() const;
  // What has to be moved: q there and back, k and v once, and rows of the pages.
  double bytes() const;
  bool rotates() const { return inverse_frequencies.present(); }
  // The ops apart.
  Rope rope() const;
  KvWrite kv_write() const;
};

}  // namespace qiao
