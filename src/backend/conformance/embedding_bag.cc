// embedding_bag and its way back: each dtype of a table, sums, weighted sums and means, ids that have no part
// and offsets that are none.
#include "backend/ops/embedding_bag.h"

#include <bit>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"
#include "tensor/half.h"

namespace qiao::conformance {
namespace {

constexpr DType kTableDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

void fill_table(Harness& h, Guarded* table) {
  const auto value = [&] { return h.chance(0.02) ? 0.0f : h.normal(); };
  switch (table->host().dtype) {
    case DType::kF32:
      return table->fill(value);
    case DType::kF16:
      return table->fill([&] { return float_to_f16(value()); });
    default:
      return table->fill([&] { return float_to_bf16(value()); });
  }
}

// A table and bags of its rows on both sides.
struct BagCase {
  int64_t rows, columns, bags, places = 0;
  bool weighted, mean;
  Guarded table, ids, offsets, weights;

  BagCase(Harness& h, DType dtype)
      : rows(h.pick<int64_t>({1, 2, 16, 100, 5000})),
        columns(rows > 100 ? h.pick<int64_t>({1, 7}) : h.pick<int64_t>({1, 7, 16, 64, 129, 300})),
        bags(h.pick<int64_t>({0, 1, 2, 7, 33})),
        weighted(h.chance(0.4)),
        mean(!weighted && h.chance(0.5)) {
    // Places before the first bag and behind the last are in none.
    std::vector<int32_t> starts{static_cast<int32_t>(h.pick<int64_t>({0, 0, 3}))};
    for (int64_t b = 0; b < bags; ++b) {
      const int64_t length = h.pick<int64_t>({0, 1, 2, 5, h.between(0, 40), h.between(0, 300)});
      starts.push_back(starts.back() + static_cast<int32_t>(length));
    }
    places = starts.back() + h.pick<int64_t>({0, 0, 2});
    table = Guarded(h, dtype, {rows, columns}, h.between(0, 5));
    ids = Guarded(h, DType::kI32, {places});
    offsets = Guarded(h, DType::kI32, {bags + 1});
    weights = Guarded(h, DType::kF32, {places});
    fill_table(h, &table);
    ids.fill([&] {
      if (h.chance(0.1)) return h.pick<int32_t>({-1, static_cast<int32_t>(rows), INT32_MIN, INT32_MAX});
      return static_cast<int32_t>(h.between(0, rows - 1));
    });
    for (int64_t b = 0; b <= bags; ++b) offsets.host_at<int32_t>(b) = starts[static_cast<size_t>(b)];
    offsets.upload();
    weights.fill([&] { return h.pick({1.0f, 0.0f, h.normal(), h.normal()}); });
  }

  template <typename Op>
  void set(Op* op, bool device) const {
    const auto of = [device](const Guarded& g) { return device ? g.device() : g.host(); };
    op->table = of(table), op->ids = of(ids), op->offsets = of(offsets), op->mean = mean;
    if (weighted) op->weights = of(weights);
  }
  void download(size_t line) {
    table.download(line, "table", false);
    ids.download(line, "ids", false);
    offsets.download(line, "offsets", false);
    weights.download(line, "weights", false);
  }
};

double bag_bound(const reference::GradientSums& sums, size_t i, int64_t rows) {
  const auto m = static_cast<double>(rows);
  return rows == 0 ? 0 : gamma(m + 2) * sums.magnitude[i] + m * 0x1p-126;
}

bool same_bits(float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }

void bag_case(Harness& h, size_t line, DType dtype) {
  BagCase c(h, dtype);
  Guarded out(h, DType::kF32, {c.bags, c.columns}, h.between(0, 5));
  EmbeddingBag op, law;
  c.set(&op, true), c.set(&law, false);
  op.out = out.device(), law.out = out.host();
  const reference::BagTerms exact = reference::exact_embedding_bag(law);
  h.chip().embedding_bag(op);
  c.download(line);
  out.download(line, "out");
  for (int64_t i = 0; i < out.elements(); ++i) {
    const auto at = static_cast<size_t>(i);
    h.element(line, out.result_at(i), exact.sums.sum[at],
              bag_bound(exact.sums, at, exact.rows[at / static_cast<size_t>(c.columns)]), i / c.columns,
              i % c.columns);
  }
  if (c.bags == 0) return;
  // A bag alone.
  const int64_t bag = h.between(0, c.bags - 1);
  Guarded one(h, DType::kF32, {1, c.columns});
  op.offsets = op.offsets.slice(bag, 2), op.out = one.device();
  h.chip().embedding_bag(op);
  one.download(line, "out");
  for (int64_t k = 0; k < c.columns; ++k) {
    if (same_bits(one.result_at(k), out.result_at(bag * c.columns + k))) continue;
    h.fail(line, fmt::format("bag {} of {} differs from the same bag alone", bag, c.bags));
    return;
  }
}

void bag_backward_case(Harness& h, size_t line, DType dtype) {
  BagCase c(h, dtype);
  Guarded dout(h, DType::kF32, {c.bags, c.columns}, h.between(0, 5)),
      dtable(h, DType::kF32, {c.rows, c.columns});
  Guarded drows(h, DType::kF32, {c.places, c.columns}), row_ids(h, DType::kI32, {c.places});
  Guarded dweights(h, DType::kF32, {c.places});
  fill_activations(h, &dout);
  dtable.fill([&] { return h.chance(0.5) ? 0.0f : h.normal(); });
  drows.fill([] { return 7.0f; });
  const int64_t which = h.between(0, 3);
  const bool dense = which != 1, sparse = which != 2, of_weights = which != 3;
  EmbeddingBagBackward op, law;
  c.set(&op, true), c.set(&law, false);
  op.dout = dout.device(), law.dout = dout.host();
  if (dense) op.dtable = dtable.device();
  if (sparse) op.drows = drows.device(), op.row_ids = row_ids.device();
  if (of_weights) op.dweights = law.dweights = dweights.device();
  const reference::BagGradients exact = reference::exact_embedding_bag_backward(law);
  h.give_workspace(&op);
  h.chip().embedding_bag_backward(op);
  c.download(line);
  dout.download(line, "dout", false);
  dtable.download(line, "dtable", dense);
  drows.download(line, "drows", sparse);
  row_ids.download(line, "row_ids", sparse);
  dweights.download(line, "dweights", of_weights);

  int64_t row = 0;
  for (int64_t v = 0; v < c.rows; ++v) {
    const auto found = exact.met.find(static_cast<int32_t>(v));
    const int64_t met = found == exact.met.end() ? 0 : found->second;
    for (int64_t k = 0; k < c.columns; ++k) {
      const auto at = static_cast<size_t>(row * c.columns + k);
      const double before = dtable.host_at(v * c.columns + k);
      const double sum = met == 0 ? 0 : exact.rows.sum[at],
                   bound = met == 0 ? 0 : bag_bound(exact.rows, at, met);
      const double with_before =
          met == 0 ? 0 : bound + gamma(static_cast<double>(met) + 2) * std::abs(before);
      if (dense) h.element(line, dtable.result_at(v * c.columns + k), before + sum, with_before, v, k);
      if (sparse && met > 0) h.element(line, drows.result_at(row * c.columns + k), sum, bound, row, k);
    }
    if (met == 0) continue;
    if (sparse) h.element(line, row_ids.result_at<int32_t>(row), static_cast<double>(v), 0, row, 0);
    ++row;
  }
  for (int64_t i = row; sparse && i < c.places; ++i) {
    h.element(line, row_ids.result_at<int32_t>(i), -1, 0, i, 0);
    for (int64_t k = 0; k < c.columns; ++k) h.element(line, drows.result_at(i * c.columns + k), 7, 0, i, k);
  }
  const auto width = static_cast<double>(c.columns);
  for (int64_t i = 0; of_weights && i < c.places; ++i) {
    const auto at = static_cast<size_t>(i);
    h.element(line, dweights.result_at(i), exact.weights.sum[at],
              gamma(width + 1) * exact.weights.magnitude[at] + width * 0x1p-126, i, 0);
  }
}

// Offsets that are none: whatever comes, nothing but the results is written, and (as sanitizers and the
// stand-in see) nothing outside is read.
void hostile_case(Harness& h, size_t line, DType dtype) {
  BagCase c(h, dtype);
  c.offsets.fill([&] {
    return h.pick<int32_t>({0, -1, INT32_MIN, INT32_MAX, static_cast<int32_t>(c.places),
                            static_cast<int32_t>(h.between(-5, c.places + 5))});
  });
  Guarded out(h, DType::kF32, {c.bags, c.columns}), dtable(h, DType::kF32, {c.rows, c.columns});
  Guarded drows(h, DType::kF32, {c.places, c.columns}), row_ids(h, DType::kI32, {c.places});
  Guarded dweights(h, DType::kF32, {c.places});
  out.fill([] { return 0.0f; });
  dtable.fill([] { return 0.0f; });
  EmbeddingBag op;
  c.set(&op, true);
  op.out = out.device();
  h.chip().embedding_bag(op);
  out.download(line, "out");
  EmbeddingBagBackward back;
  c.set(&back, true);
  back.dout = out.device(), back.dtable = dtable.device();
  back.drows = drows.device(), back.row_ids = row_ids.device(), back.dweights = dweights.device();
  h.give_workspace(&back);
  h.chip().embedding_bag_backward(back);
  c.download(line);
  dtable.download(line, "dtable");
  drows.download(line, "drows");
  row_ids.download(line, "row_ids");
  dweights.download(line, "dweights");
}

// A table that no cache of a CPU holds: some random rows, again and again.
struct BagBench {
  static constexpr int64_t kRows = 1048576, kColumns = 64, kBags = 8192, kLength = 32, kDistinct = 4096;
  Buffer memory;
  Tensor table;
  Guarded ids, offsets, bags;

  BagBench(Harness& h, DType dtype)
      : memory(h.chip().allocate(static_cast<size_t>(kRows * row_bytes(dtype, kColumns)))),
        table(memory.data(), dtype, {kRows, kColumns}),
        ids(h, DType::kI32, {kBags * kLength}),
        offsets(h, DType::kI32, {kBags + 1}),
        bags(h, DType::kF32, {kBags, kColumns}) {
    const std::vector<std::byte> some = random_rows(h, dtype, kDistinct, kColumns);
    for (size_t at = 0; at < memory.bytes(); at += some.size())
      h.chip().upload(static_cast<std::byte*>(memory.data()) + at, some.data(), some.size());
    ids.fill([&] { return static_cast<int32_t>(h.between(0, kRows - 1)); });
    offsets.fill([next = int32_t{0}]() mutable {
      const int32_t offset = next;
      next += static_cast<int32_t>(kLength);
      return offset;
    });
    bags.fill([] { return 1.0f; });
  }
  static std::string shape() {
    return fmt::format("B={} n={} V={} C={}", kBags, kBags * kLength, kRows, kColumns);
  }
  template <typename Op>
  void set(Op* op) const {
    op->table = table, op->ids = ids.device(), op->offsets = offsets.device();
  }
};

template <typename Case>
void each_bag_line(Harness& h, std::string_view op, Case body) {
  for (const DType dtype : kTableDTypes) body(h.line(op, traits(dtype).name), dtype);
}

}  // namespace

void conform_embedding_bag(Harness& h) {
  each_bag_line(h, "embedding_bag", [&](size_t line, DType dtype) {
    for (int i = 0; i < (h.options().quick ? 10 : 60); ++i)
      h.run_case(line, [&] { bag_case(h, line, dtype); });
    h.run_case(line, [&] {
      if (!h.benches()) return;
      const BagBench b(h, dtype);
      EmbeddingBag op;
      b.set(&op);
      op.out = b.bags.device();
      h.bench(line, BagBench::shape(), op.bytes(), op.flops(), Harness::Peak::kNone,
              [&] { h.chip().embedding_bag(op); });
    });
  });
}

void conform_embedding_bag_backward(Harness& h) {
  each_bag_line(h, "embedding_bag_backward", [&](size_t line, DType dtype) {
    for (int i = 0; i < (h.options().quick ? 10 : 60); ++i)
      h.run_case(line, [&] { bag_backward_case(h, line, dtype); });
    for (int i = 0; i < (h.options().quick ? 4 : 20); ++i)
      h.run_case(line, [&] { hostile_case(h, line, dtype); });
    h.run_case(line, [&] {
      if (!h.benches() || dtype != DType::kF32) return;
      const BagBench b(h, dtype);
      Guarded drows(h, DType::kF32, {BagBench::kBags * BagBench::kLength, BagBench::kColumns});
      Guarded row_ids(h, DType::kI32, {BagBench::kBags * BagBench::kLength});
      EmbeddingBagBackward op;
      b.set(&op);
      op.dout = b.bags.device(), op.drows = drows.device(), op.row_ids = row_ids.device();
      h.give_workspace(&op);
      h.bench(line, BagBench::shape(), op.bytes(), op.flops(), Harness::Peak::kNone,
              [&] { h.chip().embedding_bag_backward(op); });
    });
  });
}

}  // namespace qiao::conformance
