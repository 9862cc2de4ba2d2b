// Part of the law (reference_class.h): every score of a query, sorted.
#include "backend/ops/vector_search.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {

float query_square(const VectorSearch& op, int64_t query) {
  std::vector<double> q(static_cast<size_t>(op.table->columns()));
  round_activations(op.compute, op.queries.as<float>() + query * op.queries.stride[0], op.table->columns(),
                    q.data());
  return static_cast<float>(std::inner_product(q.begin(), q.end(), q.begin(), 0.0));
}

SearchTerms exact_vector_search(const VectorSearch& op) {
  const int64_t batch = op.queries.shape[0], rows = op.table->rows();
  SearchTerms terms;
  terms.products =
      exact_products(op.queries, *op.table, op.compute, std::vector<int64_t>(static_cast<size_t>(batch), 0));
  terms.scores = terms.products.sum;
  if (op.metric == Metric::kDot) return terms;
  for (int64_t b = 0; b < batch; ++b) {
    terms.squares.push_back(query_square(op, b));
    for (int64_t v = 0; v < rows; ++v) {
      double& score = terms.scores[static_cast<size_t>(b * rows + v)];
      score = terms.squares.back() + static_cast<double>(op.squares.as<float>()[v]) - 2 * score;
      if (score < 0) score = 0;
    }
  }
  return terms;
}

std::vector<int32_t> search_order(Metric metric, const float* scores, int64_t rows) {
  std::vector<int32_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    if (std::isnan(scores[a]) || std::isnan(scores[b])) return !std::isnan(scores[a]);
    return metric == Metric::kDot ? scores[a] > scores[b] : scores[a] < scores[b];
  });
  return order;
}

// Of linear's bits, in the order that the contract has.
void ReferenceBackend::do_vector_search(const VectorSearch& op) {
  const int64_t batch = op.queries.shape[0], rows = op.table->rows();
  std::vector<float> scores(static_cast<size_t>(batch * rows));
  Linear linear;
  linear.x = op.queries, linear.weight = op.table, linear.compute = op.compute;
  linear.y = Tensor(scores.data(), DType::kF32, {batch, rows});
  do_linear(linear);
  for (int64_t b = 0; b < batch; ++b) {
    float* of_query = scores.data() + b * rows;
    if (op.metric == Metric::kL2) {
      const float square = query_square(op, b);
      for (int64_t v = 0; v < rows; ++v) {
        of_query[v] = (square + op.squares.as<float>()[v]) - 2 * of_query[v];
        if (of_query[v] < 0) of_query[v] = 0;
      }
    }
    const std::vector<int32_t> order = search_order(op.metric, of_query, rows);
    for (int64_t j = 0; j < op.scores.shape[1]; ++j) {
      int_at(op.ids, b, j) = order[static_cast<size_t>(j)];
      at(op.scores, b, j) = of_query[order[static_cast<size_t>(j)]];
    }
  }
}

}  // namespace qiao::reference
