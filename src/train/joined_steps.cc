#include "train/joined_steps.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace qiao::train {

// Each keeper's matrices the largest first, so that those of a round are alike.
JoinedSteps::JoinedSteps(Backend& backend, const Parameters& parameters, const Ranks& ranks)
    : backend_(backend), parameters_(parameters), ranks_(ranks) {
  std::vector<std::vector<Matrix>> by_keeper(static_cast<size_t>(ranks.group().size()));
  for (size_t i = 0; i < parameters.tensors().size(); ++i) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    if (!tensor.is_here || !tensor.is_joined) continue;
    const int keeper = ranks.keeper(i).value();
    for (int64_t run = 0; run < tensor.runs; ++run)
      by_keeper[static_cast<size_t>(keeper)].push_back({i, run, keeper});
  }
  size_t rounds = 0;
  for (std::vector<Matrix>& matrices : by_keeper) {
    std::ranges::stable_sort(matrices, std::greater(), [&](const Matrix& matrix) {
      return parameters.tensors()[matrix.tensor].part.whole_count();
    });
    rounds = std::max(rounds, matrices.size());
  }
  rounds_.resize(rounds);
  for (size_t round = 0; round < rounds; ++round)
    for (const std::vector<Matrix>& matrices : by_keeper)
      if (round < matrices.size()) rounds_[round].push_back(matrices[round]);
  for (const std::vector<Matrix>& round : rounds_)
    for (const Matrix& matrix : round)
      if (is_own(matrix)) measure(matrix);
}

void JoinedSteps::measure(const Matrix& matrix) {
  const std::vector<int64_t> all = counts(matrix, Way::kToPacked);
  whole_count_ = std::max(whole_count_, part(0, matrix).whole_count());
  packed_count_ = std::max(packed_count_, std::accumulate(all.begin(), all.end(), int64_t{0}));
  for (int rank = 0; rank < ranks_.group().size(); ++rank)
    for (const Range& rows : part(rank, matrix).rows) row_count_ = std::max(row_count_, rows.count);
}

size_t JoinedSteps::bytes() const {
  return static_cast<size_t>(2 * whole_count_ + packed_count_) * sizeof(float) +
         static_cast<size_t>(row_count_) * sizeof(int32_t);
}

void JoinedSteps::prepare() {
  master_ = backend_.allocate(static_cast<size_t>(whole_count_) * sizeof(float));
  gradient_ = backend_.allocate(static_cast<size_t>(whole_count_) * sizeof(float));
  packed_ = backend_.allocate(static_cast<size_t>(packed_count_) * sizeof(float));
  std::vector<int32_t> rows(static_cast<size_t>(row_count_));
  std::iota(rows.begin(), rows.end(), 0);
  rows_ = backend_.allocate(rows.size() * sizeof(int32_t));
  backend_.upload(rows_.data(), rows.data(), rows_.bytes());
}

Tensor JoinedSteps::whole(const Buffer& memory, const Matrix& matrix) const {
  return {memory.data(), DType::kF32, {part(0, matrix).whole_count()}};
}

// Of numbers that several ranks have, the same on all, the first sends them; each gets its own.
std::vector<int64_t> JoinedSteps::counts(const Matrix& matrix, Way way) const {
  std::vector<int64_t> found;
  for (int rank = 0; rank < ranks_.group().size(); ++rank) {
    const bool moves = way == Way::kToPacked || ranks_.counts(rank, matrix.tensor);
    found.push_back(moves ? part(rank, matrix).count() : 0);
  }
  return found;
}

// Between all of a matrix and the parts of the ranks that counts() names.
void JoinedSteps::copy(const Matrix& matrix, const Tensor& whole, Way way) {
  const TensorPart& any = part(0, matrix);
  const Tensor table(whole.data, DType::kF32, {any.whole_rows, any.whole_columns});
  const std::vector<int64_t> moved = counts(matrix, way);
  int64_t first = 0;
  for (int rank = 0; rank < ranks_.group().size(); ++rank) {
    if (moved[static_cast<size_t>(rank)] == 0) continue;
    const Range columns = part(rank, matrix).columns;
    for (const Range& rows : part(rank, matrix).rows) {
      if (rows.count == 0) continue;
      const Tensor placed = table.slice(rows.first, rows.count).narrow(1, columns.first, columns.count);
      const Tensor packed(static_cast<float*>(packed_.data()) + first, DType::kF32,
                          {rows.count, columns.count});
      const Tensor order(rows_.data(), DType::kI32, {rows.count});
      backend_.gather_rows(way == Way::kToWhole ? GatherRows{packed, order, placed}
                                                : GatherRows{placed, order, packed});
      first += rows.count * columns.count;
    }
  }
}

void JoinedSteps::gather(const Matrix& matrix, const Tensor& own, const Buffer& to) {
  const Tensor packed(packed_.data(), DType::kF32, {packed_count_});
  ranks_.group_sums().gather(own, counts(matrix, Way::kToWhole), matrix.keeper,
                             is_own(matrix) ? packed : Tensor());
  if (is_own(matrix)) copy(matrix, whole(to, matrix), Way::kToWhole);
}

void JoinedSteps::scatter(const Matrix& matrix, const Buffer& from, const Tensor& own) {
  const Tensor packed(packed_.data(), DType::kF32, {packed_count_});
  if (is_own(matrix)) copy(matrix, whole(from, matrix), Way::kToPacked);
  ranks_.group_sums().scatter(is_own(matrix) ? packed : Tensor(), counts(matrix, Way::kToPacked),
                              matrix.keeper, own);
}

void JoinedSteps::take(const Step& step) {
  for (const std::vector<Matrix>& round : rounds_) {
    for (const Matrix& matrix : round) {
      const Parameters::Named& tensor = parameters_.tensors()[matrix.tensor];
      gather(matrix, parameters_.gradient(tensor, matrix.run), gradient_);
      gather(matrix, parameters_.master(tensor, matrix.run), master_);
    }
    for (const Matrix& matrix : round)
      if (is_own(matrix)) step(matrix.tensor, matrix.run, whole(master_, matrix), whole(gradient_, matrix));
    for (const Matrix& matrix : round)
      scatter(matrix, master_, parameters_.master(parameters_.tensors()[matrix.tensor], matrix.run));
  }
}

}  // namespace qiao::train
