// What several processes of one model do together with tensors in their chips' memory. A chip may bring its
// own way (Backend::make_collectives); the common one goes through the host and a Communicator.
#pragma once

#include <cstdint>
#include <span>

#include "tensor/tensor.h"

namespace qiao {

// The order of addition is fixed, a function of the number of ranks alone: neighbours first, then neighbours
// of those, (0 + 1) + (2 + 3), and of three (0 + 1) + 2; each addition rounds to F32. Every rank gets the
// same bits, whatever else is in the step: batch invariance holds within one number of ranks. Beside the
// exact sum of n addends x_r the error is at most γ_d Σ|x_r|, d = ceil(log2 n) (Higham 2002, 4.2).
class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // All ranks call the same ones in the same order, with the same shapes; ordered with the chip's ops. Throw
  // Error(kUnavailable), naming the rank, where one is lost.

  // `values`, dense F32, becomes the sum of what the ranks have there, on each of them.
  virtual void all_reduce_sum(const Tensor& values) = 0;
  // The same on `root` alone; elsewhere `values` is what some of the ranks have together, or as it was.
  virtual void reduce_sum(const Tensor& values, int root) = 0;
  // `to`, dense F32, becomes on every rank, `root` too, what `values` of as many numbers is there, which may
  // be `to` itself and elsewhere is absent.
  virtual void broadcast(const Tensor& values, int root, const Tensor& to) = 0;
  // Columns of every rank side by side, on rank 0: `own`, dense F32 [O, columns[rank]], of rank r to
  // all[:, columns before r…]. `all`, F32 [O, sum of columns], has rows without gaps and is absent elsewhere;
  // what lies in it of rank 0 itself is there already.
  virtual void gather_columns(const Tensor& own, std::span<const int64_t> columns, const Tensor& all) = 0;
  // The first counts[rank] numbers of every rank's `own`, dense F32 (absent where that is none), one rank's
  // behind the other's in `all`, dense F32 [>= sum of counts], on `root`; elsewhere `all` is absent. They do
  // not overlap.
  virtual void gather(const Tensor& own, std::span<const int64_t> counts, int root, const Tensor& all) = 0;
  // The way back: of `all` on `root` to every rank's `own`.
  virtual void scatter(const Tensor& all, std::span<const int64_t> counts, int root, const Tensor& own) = 0;

  // Whether calls may be part of what Backend::repeat keeps: no host has a hand in them.
  virtual bool can_be_repeated() const = 0;
};

}  // namespace qiao
