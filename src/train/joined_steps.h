// The optimizer's steps that take all of a matrix of which a group's ranks have parts each (Muon's, and those
// whose states are codes in blocks of the whole): its keeper, which has the states, gets the parts of
// gradient and master, takes the step as one process would, and gives each rank its part of the master. So
// the states, which are dealt out rather than cut, and the bits of a step do not tell of how many parts there
// are.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "train/parameters.h"
#include "train/ranks.h"

namespace qiao::train {

class JoinedSteps {
 public:
  // Of the tensors that are here and joined, once Ranks::share() has told which. All outlive it.
  JoinedSteps(Backend& backend, const Parameters& parameters, const Ranks& ranks);

  size_t bytes() const;  // that prepare() takes
  void prepare();

  // One run of a tensor that this rank keeps: `master` and `gradient`, F32 [whole_rows * whole_columns], are
  // all of it; the step changes the master.
  using Step = std::function<void(size_t tensor, int64_t run, const Tensor& master, const Tensor& gradient)>;
  // Called by all of a group alike. As many matrices at a time as there are ranks, each at another's: all
  // compute at once.
  void take(const Step& step);

 private:
  struct Matrix {
    size_t tensor;
    int64_t run;
    int keeper;
  };
  enum class Way : uint8_t { kToWhole, kToPacked };
  const TensorPart& part(int rank, const Matrix& matrix) const { return ranks_.part(rank, matrix.tensor); }
  bool is_own(const Matrix& matrix) const { return matrix.keeper == ranks_.group().rank(); }
  void measure(const Matrix& matrix);
  Tensor whole(const Buffer& memory, const Matrix& matrix) const;
  std::vector<int64_t> counts(const Matrix& matrix, Way way) const;
  void copy(const Matrix& matrix, const Tensor& whole, Way way);
  void gather(const Matrix& matrix, const Tensor& own, const Buffer& to);
  void scatter(const Matrix& matrix, const Buffer& from, const Tensor& own);

  Backend& backend_;
  const Parameters& parameters_;
  const Ranks& ranks_;
  std::vector<std::vector<Matrix>> rounds_;
  // Numbers of the largest matrix that is kept here, and of its parts one behind the other; rows of a part.
  int64_t whole_count_ = 0, packed_count_ = 0, row_count_ = 0;
  Buffer master_, gradient_, packed_;
  Buffer rows_;  // 0, 1, 2…: a part's rows are those of a gather_rows, whose strides are any
};

}  // namespace qiao::train
