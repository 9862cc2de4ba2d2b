// Part of the law (reference_class.h): bags of a table's rows, and their way back.
#include "backend/ops/embedding_bag.h"

#include <algorithm>
#include <map>

#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"
#include "tensor/half.h"

namespace qiao::reference {
namespace {

double table_at(const Tensor& table, int64_t row, int64_t column) {
  const int64_t at = row * table.stride[0] + column * table.stride[1];
  if (table.dtype == DType::kF32) return table.as<float>()[at];
  const uint16_t bits = table.as<uint16_t>()[at];
  return table.dtype == DType::kF16 ? f16_to_float(bits) : bf16_to_float(bits);
}

// A row that has part in a bag.
struct Member {
  int64_t place, bag, id;
  double weight;  // on the way back of a mean, 1 / (the bag's rows)
};

template <typename Op>
std::vector<Member> members_of(const Op& op) {
  std::vector<Member> members;
  const int32_t* offsets = op.offsets.template as<int32_t>();
  const int64_t places = op.ids.shape[0];
  for (int64_t b = 0; b + 1 < op.offsets.shape[0]; ++b) {
    const int64_t begin = std::clamp<int64_t>(offsets[b], 0, places);
    const int64_t end = std::clamp<int64_t>(offsets[b + 1], 0, places);
    const size_t first = members.size();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t id = op.ids.template as<int32_t>()[i];
      if (id < 0 || id >= op.table.shape[0]) continue;
      members.push_back({i, b, id, op.weights.present() ? op.weights.template as<float>()[i] : 1.0});
    }
    const auto count = static_cast<double>(members.size() - first);
    for (size_t m = first; op.mean && m < members.size(); ++m) members[m].weight = 1.0 / count;
  }
  return members;
}

}  // namespace

BagTerms exact_embedding_bag(const EmbeddingBag& op) {
  const int64_t bags = op.offsets.shape[0] - 1, columns = op.table.shape[1];
  BagTerms terms;
  terms.sums = GradientSums(bags * columns);
  terms.rows.resize(static_cast<size_t>(bags));
  for (const Member& m : members_of(op)) {
    ++terms.rows[static_cast<size_t>(m.bag)];
    for (int64_t c = 0; c < columns; ++c)
      terms.sums.add(m.bag * columns + c, m.weight, table_at(op.table, m.id, c));
  }
  return terms;
}

void ReferenceBackend::do_embedding_bag(const EmbeddingBag& op) {
  const int64_t columns = op.table.shape[1];
  const BagTerms terms = exact_embedding_bag(op);
  for (int64_t b = 0; b < op.out.shape[0]; ++b) {
    for (int64_t c = 0; c < columns; ++c)
      at(op.out, b, c) = static_cast<float>(terms.sums.sum[static_cast<size_t>(b * columns + c)]);
  }
}

BagGradients exact_embedding_bag_backward(const EmbeddingBagBackward& op) {
  const int64_t columns = op.table.shape[1], places = op.ids.shape[0];
  BagGradients g;
  const std::vector<Member> members = members_of(op);
  for (const Member& m : members) ++g.met[static_cast<int32_t>(m.id)];
  std::map<int32_t, int64_t> row_of;
  for (const auto& [id, count] : g.met) row_of.emplace(id, static_cast<int64_t>(row_of.size()));
  g.rows = GradientSums(static_cast<int64_t>(g.met.size()) * columns);
  g.weights = GradientSums(places);
  for (const Member& m : members) {
    const int64_t row = row_of.at(static_cast<int32_t>(m.id));
    for (int64_t c = 0; c < columns; ++c) {
      g.rows.add(row * columns + c, m.weight, at(op.dout, m.bag, c));
      if (op.dweights.present()) g.weights.add(m.place, at(op.dout, m.bag, c), table_at(op.table, m.id, c));
    }
  }
  return g;
}

void ReferenceBackend::do_embedding_bag_backward(const EmbeddingBagBackward& op) {
  const int64_t columns = op.table.shape[1];
  const BagGradients g = exact_embedding_bag_backward(op);
  if (op.row_ids.present()) std::fill_n(op.row_ids.as<int32_t>(), op.ids.shape[0], -1);
  int64_t row = 0;
  for (const auto& [id, count] : g.met) {
    for (int64_t c = 0; c < columns; ++c) {
      const double sum = g.rows.sum[static_cast<size_t>(row * columns + c)];
      if (op.drows.present()) at(op.drows, row, c) = static_cast<float>(sum);
      if (op.dtable.present()) at(op.dtable, id, c) = static_cast<float>(at(op.dtable, id, c) + sum);
    }
    if (op.row_ids.present()) op.row_ids.as<int32_t>()[row] = id;
    ++row;
  }
  for (int64_t i = 0; op.dweights.present() && i < op.ids.shape[0]; ++i)
    op.dweights.as<float>()[i] = static_cast<float>(g.weights.sum[static_cast<size_t>(i)]);
}

}  // namespace qiao::reference
