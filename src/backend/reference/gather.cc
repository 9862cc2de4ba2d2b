// Part of the law (reference_class.h).
#include "backend/ops/gather.h"

#include <cstring>

#include "backend/reference/exact.h"
#include "backend/reference/memory.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {

void ReferenceBackend::do_gather(const Gather& op) {
  const auto& table = static_cast<const ReferenceWeight&>(*op.table);
  std::vector<Term> row(static_cast<size_t>(table.columns()));
  for (int64_t t = 0; t < op.out.shape[0]; ++t) {
    table.row_terms(0, op.ids.as<int32_t>()[t], row.data());
    for (int64_t c = 0; c < table.columns(); ++c) {
      at(op.out, t, c) = op.scale * row[static_cast<size_t>(c)].value();
    }
  }
}

void ReferenceBackend::do_gather_rows(const GatherRows& op) {
  for (int64_t s = 0; s < op.out.shape[0]; ++s) {
    for (int64_t c = 0; c < op.out.shape[1]; ++c) at(op.out, s, c) = at(op.x, op.rows.as<int32_t>()[s], c);
  }
}

GradientSums exact_gather_backward(const GatherBackward& op) {
  const int64_t columns = op.dtable.shape[1];
  GradientSums g(op.dtable.elements());
  for (int64_t i = 0; i < op.dtable.elements(); ++i) g.begin(i, op.dtable.as<float>()[i]);
  for (int64_t t = 0; t < op.dout.shape[0]; ++t) {
    for (int64_t c = 0; c < columns; ++c) {
      g.add(op.ids.as<int32_t>()[t] * columns + c, op.scale, at(op.dout, t, c));
    }
  }
  return g;
}

void ReferenceBackend::do_gather_backward(const GatherBackward& op) {
  const GradientSums g = exact_gather_backward(op);
  for (int64_t i = 0; i < op.dtable.elements(); ++i) {
    op.dtable.as<float>()[i] = static_cast<float>(g.sum[static_cast<size_t>(i)]);
  }
}

}  // namespace qiao::reference
