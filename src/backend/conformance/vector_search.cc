// vector_search: scores within linear's bounds, none left out that is surely better; and the very ids that
// sorting linear's bits gives, with ties and NaN among them, alone as in a batch.
#include "backend/ops/vector_search.h"

#include <cmath>
#include <set>

#include "backend/conformance/harness.h"
#include "backend/ops/linear.h"
#include "backend/reference/exact.h"
#include "backend/row_squares.h"

namespace qiao::conformance {
namespace {

constexpr DType kSearchDTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF8_128};

bool measures_distances(Compute compute) { return compute == Compute::kF32 || compute == Compute::kBF16; }

std::string_view name(Metric metric) { return metric == Metric::kDot ? "dot" : "l2"; }

struct SearchCase {
  int64_t batch, rows, columns, k;
  Metric metric;
  Compute compute;
  WeightPair table;
  Buffer chip_squares, law_squares;
  Guarded queries, scores, ids;

  // Small whole numbers with `ties`, and some rows and queries of NaN and infinities.
  SearchCase(Harness& h, DType dtype, Compute of, Metric by, bool ties, bool first)
      : batch(first ? 17 : h.pick<int64_t>({0, 1, 1, 3, 17, 40})),
        rows(first ? 33 : h.pick<int64_t>({1, 2, 31, 33, 500, h.options().quick ? 900 : 9001})),
        columns(traits(dtype).block_elements == 1 ? h.pick<int64_t>({1, 7, 64, 129})
                                                  : traits(dtype).block_elements * h.between(1, 3)),
        k(std::min(std::min(rows, kMostNeighbours), h.pick<int64_t>({1, 2, 10, 100, 1024}))),
        metric(by),
        compute(of) {
    const SegmentSpec segment{dtype, rows};
    table = ties ? tied(h, rows, columns) : make_weights(h, {&segment, 1}, columns);
    queries = Guarded(h, DType::kF32, {batch, columns}, h.between(0, 5));
    scores = Guarded(h, DType::kF32, {batch, k}, h.between(0, 3));
    ids = Guarded(h, DType::kI32, {batch, k}, h.between(0, 3));
    if (ties) {
      queries.fill([&] { return static_cast<float>(h.between(-2, 2)); });
      if (batch > 2) queries.host_at(columns) = h.pick<float>({NAN, INFINITY});
      queries.upload();
    } else {
      fill_activations(h, &queries, 1e6f);
    }
    if (metric != Metric::kL2) return;
    chip_squares = make_row_squares(h.chip(), *table.chip);
    std::vector<float> values(static_cast<size_t>(rows));
    h.chip().download(values.data(), chip_squares.data(), values.size() * sizeof(float));
    law_squares = h.law().allocate(values.size() * sizeof(float));
    h.law().upload(law_squares.data(), values.data(), values.size() * sizeof(float));
  }

  static WeightPair tied(Harness& h, int64_t rows, int64_t columns) {
    std::vector<float> values(static_cast<size_t>(rows * columns));
    for (float& value : values) value = static_cast<float>(h.between(-1, 1));
    if (rows > 20) {
      values[static_cast<size_t>(5 * columns)] = NAN;
      values[static_cast<size_t>(7 * columns)] = INFINITY;
      values[static_cast<size_t>(9 * columns)] = -INFINITY;
    }
    WeightSource source;
    source.columns = columns;
    source.parts = {{DType::kF32, rows, reinterpret_cast<const std::byte*>(values.data())}};
    return {h.chip().make_weight(source), h.law().make_weight(source)};
  }

  VectorSearch op(bool device) const {
    VectorSearch op;
    op.queries = device ? queries.device() : queries.host();
    op.table = device ? table.chip.get() : table.law.get();
    op.metric = metric, op.compute = compute;
    op.scores = device ? scores.device() : scores.host();
    op.ids = device ? ids.device() : ids.host();
    if (metric == Metric::kL2)
      op.squares = Tensor(device ? chip_squares.data() : law_squares.data(), DType::kF32, {rows});
    return op;
  }
  void download(size_t line) {
    queries.download(line, "queries", false);
    scores.download(line, "scores");
    ids.download(line, "ids");
  }
};

void search_case(Harness& h, size_t line, DType dtype, Compute compute, Metric metric, bool first) {
  SearchCase c(h, dtype, compute, metric, false, first);
  VectorSearch op = c.op(true);
  h.give_workspace(&op);
  h.chip().vector_search(op);
  c.download(line);
  const VectorSearch law = c.op(false);
  const reference::SearchTerms exact = reference::exact_vector_search(law);
  const auto bound_of = [&](int64_t b, int64_t v) {
    const auto at = static_cast<size_t>(b * c.rows + v);
    const double s = std::abs(exact.products.sum[at]);
    const double e = sum_bound(h.chip(), compute, c.columns, exact.products.magnitude[at],
                               exact.products.x_sum[static_cast<size_t>(b)],
                               exact.products.w_sum[static_cast<size_t>(v)]) +
                     kUnit * s;
    if (metric == Metric::kDot) return e;
    const double square = std::abs(static_cast<double>(law.squares.as<float>()[v]));
    return 2 * e + gamma(4) * (exact.squares[static_cast<size_t>(b)] + square + 2 * s);
  };
  const double sign = metric == Metric::kDot ? 1 : -1;
  for (int64_t b = 0; b < c.batch; ++b) {
    std::set<int32_t> seen;
    double last = INFINITY;
    for (int64_t j = 0; j < c.k; ++j) {
      const int32_t id = c.ids.result_at<int32_t>(b * c.k + j);
      const float score = c.scores.result_at(b * c.k + j);
      if (id < 0 || id >= c.rows || !seen.insert(id).second) {
        h.fail(line,
               fmt::format("query {} of {}: neighbour {} is {}, of {} rows", b, c.batch, j, id, c.rows));
        return;
      }
      h.element(line, score, exact.scores[static_cast<size_t>(b * c.rows + id)], bound_of(b, id), b, j);
      if (!(sign * static_cast<double>(score) <= last)) {
        h.fail(line, fmt::format("query {}: neighbour {} is better than the one before", b, j));
        return;
      }
      last = sign * static_cast<double>(score);
    }
    for (int64_t v = 0; v < c.rows; ++v) {
      if (seen.count(static_cast<int32_t>(v)) != 0) continue;
      if (sign * exact.scores[static_cast<size_t>(b * c.rows + v)] - bound_of(b, v) <= last) continue;
      h.fail(line, fmt::format("query {} of {}: row {} of {} is left out", b, c.batch, v, c.rows));
      return;
    }
  }
}

// What the contract makes of linear's bits.
std::vector<float> scores_of(const SearchCase& c, const float* logits, int64_t query, const float* squares) {
  std::vector<float> scores(logits, logits + c.rows);
  if (c.metric == Metric::kDot) return scores;
  const float square = reference::query_square(c.op(false), query);
  for (int64_t v = 0; v < c.rows; ++v) {
    float& score = scores[static_cast<size_t>(v)];
    score = (square + squares[v]) - 2 * score;
    if (score < 0) score = 0;
  }
  return scores;
}

bool alike(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void search_bits(Harness& h, size_t line, DType dtype, Compute compute, Metric metric, bool ties) {
  SearchCase c(h, dtype, compute, metric, ties, false);
  VectorSearch op = c.op(true);
  h.give_workspace(&op);
  h.chip().vector_search(op);
  c.download(line);
  Guarded logits(h, DType::kF32, {c.batch, c.rows});
  Linear linear;
  linear.x = op.queries, linear.weight = op.table, linear.compute = compute, linear.y = logits.device();
  h.give_workspace(&linear);
  h.chip().linear(linear);
  logits.download(line, "logits");
  for (int64_t b = 0; b < c.batch; ++b) {
    const std::vector<float> scores = scores_of(c, logits.result().as<float>() + b * c.rows, b,
                                                static_cast<const float*>(c.law_squares.data()));
    const std::vector<int32_t> order = reference::search_order(metric, scores.data(), c.rows);
    for (int64_t j = 0; j < c.k; ++j) {
      const int32_t id = c.ids.result_at<int32_t>(b * c.k + j), expected = order[static_cast<size_t>(j)];
      const float score = c.scores.result_at(b * c.k + j);
      if (id == expected && alike(score, scores[static_cast<size_t>(id)])) continue;
      h.fail(line, fmt::format("query {} of {}: neighbour {} is row {} ({}), expected row {} ({})", b,
                               c.batch, j, id, score, expected, scores[static_cast<size_t>(expected)]));
      return;
    }
  }
  if (c.batch == 0) return;
  // A query alone.
  const int64_t query = h.between(0, c.batch - 1);
  Guarded scores(h, DType::kF32, {1, c.k}), ids(h, DType::kI32, {1, c.k});
  op.queries = op.queries.slice(query, 1), op.scores = scores.device(), op.ids = ids.device();
  h.give_workspace(&op);
  h.chip().vector_search(op);
  scores.download(line, "scores");
  ids.download(line, "ids");
  for (int64_t j = 0; j < c.k; ++j) {
    if (ids.result_at<int32_t>(j) == c.ids.result_at<int32_t>(query * c.k + j) &&
        alike(scores.result_at(j), c.scores.result_at(query * c.k + j))) {
      continue;
    }
    h.fail(line, fmt::format("query {} of {} differs from the same query alone", query, c.batch));
    return;
  }
}

void search_bench(Harness& h, size_t line, DType dtype, Compute compute, int64_t batch) {
  constexpr int64_t kRows = 262144, kColumns = 128, kFound = 10, kDistinct = 4096;
  const std::vector<std::byte> some = random_rows(h, dtype, kDistinct, kColumns);
  std::vector<std::byte> all;
  for (int64_t v = 0; v < kRows; v += kDistinct) all.insert(all.end(), some.begin(), some.end());
  WeightSource source;
  source.columns = kColumns;
  source.parts = {{dtype, kRows, all.data()}};
  const std::unique_ptr<Weight> table = h.chip().make_weight(source);
  h.chip().settle();
  Guarded queries(h, DType::kF32, {batch, kColumns});
  Guarded scores(h, DType::kF32, {batch, kFound}), ids(h, DType::kI32, {batch, kFound});
  queries.fill([&] { return h.normal(); });
  VectorSearch op;
  op.queries = queries.device(), op.table = table.get(), op.compute = compute;
  op.scores = scores.device(), op.ids = ids.device();
  h.give_workspace(&op);
  h.bench(line, fmt::format("B={} V={} C={} k={}", batch, kRows, kColumns, kFound), op.bytes(), op.flops(),
          peak_of(compute), [&] { h.chip().vector_search(op); });
}

}  // namespace

void conform_vector_search(Harness& h) {
  const bool quick = h.options().quick;
  for (const DType dtype : kSearchDTypes) {
    for (const Compute compute : computes_of(dtype)) {
      for (const Metric metric : {Metric::kDot, Metric::kL2}) {
        if (metric == Metric::kL2 && !measures_distances(compute)) continue;
        const size_t line =
            h.line("vector_search", fmt::format("{} {} {}", traits(dtype).name, name(compute), name(metric)));
        for (int i = 0; i < (quick ? 4 : 20); ++i)
          h.run_case(line, [&] { search_case(h, line, dtype, compute, metric, i == 0); });
        for (int i = 0; i < (quick ? 3 : 12) && h.chip().batch_invariant(); ++i) {
          const bool ties = dtype == DType::kF32 && i % 2 == 0;
          h.run_case(line, [&] { search_bits(h, line, dtype, compute, metric, ties); });
        }
        h.run_case(line, [&] {
          if (!h.benches() || metric != Metric::kDot) return;
          for (const int64_t batch : {1, 64}) search_bench(h, line, dtype, compute, batch);
        });
      }
    }
  }
}

}  // namespace qiao::conformance
