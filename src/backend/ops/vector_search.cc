#include "backend/ops/vector_search.h"

#include <algorithm>

#include "backend/ops/check.h"

namespace qiao {

void VectorSearch::check() const {
  constexpr std::string_view op = "vector_search";
  check::dense_weight(op, "table", table);
  check::rank(op, "queries", queries, 2);
  check::rank(op, "scores", scores, 2);
  const int64_t batch = queries.shape[0], rows = table->rows(), k = scores.shape[1];
  check::rows(op, "queries", queries, DType::kF32, {batch, table->columns()});
  if (k < 1 || k > std::min(rows, kMostNeighbours)) {
    check::refuse(op, fmt::format("{} neighbours are asked for of {} rows, expected 1 to {}", k, rows,
                                  std::min(rows, kMostNeighbours)));
  }
  check::rows(op, "scores", scores, DType::kF32, {batch, k});
  check::rows(op, "ids", ids, DType::kI32, {batch, k});
  check::compute(op, *table, compute);
  if (metric == Metric::kL2) {
    check::dense(op, "squares", squares, DType::kF32, {rows});
    if (compute != Compute::kF32 && compute != Compute::kBF16) {
      check::refuse(op, "distances are computed in f32 or bf16 alone");
    }
  } else if (squares.present()) {
    check::refuse(op, "squares are of l2 alone");
  }
  check::workspace(op, workspace);
  const std::pair<const char*, const Tensor*> results[] = {
      {"scores", &scores}, {"ids", &ids}, {"workspace", &workspace}};
  for (const auto& result : results) {
    check::distinct(op, result.first, *result.second, "queries", queries);
    check::distinct(op, result.first, *result.second, "squares", squares);
    for (const auto& other : results) {
      if (&other == &result) break;
      check::distinct(op, result.first, *result.second, other.first, *other.second);
    }
  }
}

double VectorSearch::flops() const {
  return 2.0 * static_cast<double>(queries.elements()) * static_cast<double>(table->rows());
}

double VectorSearch::bytes() const {
  return check::weight_bytes(*table) +
         static_cast<double>(queries.bytes() + squares.bytes() + scores.bytes() + ids.bytes());
}

}  // namespace qiao
