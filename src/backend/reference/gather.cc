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

}  // namespace qiao::reference
