#include "backend/ops/gather.h"

#include <cmath>

#include "backend/ops/check.h"

namespace qiao {

void Gather::check() const {
  constexpr std::string_view op = "gather";
  check::dense_weight(op, "table", table);
  check::rank(op, "ids", ids, 1);
  check::dense(op, "ids", ids, DType::kI32, {ids.shape[0]});
  check::rows(op, "out", out, DType::kF32, {ids.shape[0], table->columns()});
  if (!std::isfinite(scale)) check::refuse(op, "scale is not finite");
  check::distinct(op, "out", out, "ids", ids);
}

double Gather::flops() const { return static_cast<double>(out.elements()); }

double Gather::bytes() const {
  const double row = check::weight_bytes(*table) / static_cast<double>(table->rows());
  return row * static_cast<double>(ids.elements()) + static_cast<double>(ids.bytes() + out.bytes());
}

void GatherRows::check() const {
  constexpr std::string_view op = "gather_rows";
  check::rank(op, "x", x, 2);
  check::rank(op, "rows", rows, 1);
  check::rows(op, "x", x, DType::kF32, {x.shape[0], x.shape[1]});
  check::dense(op, "rows", rows, DType::kI32, {rows.shape[0]});
  check::rows(op, "out", out, DType::kF32, {rows.shape[0], x.shape[1]});
  check::distinct(op, "out", out, "x", x);
  check::distinct(op, "out", out, "rows", rows);
}

double GatherRows::bytes() const { return static_cast<double>(rows.bytes() + 2 * out.bytes()); }

void GatherBackward::check() const {
  constexpr std::string_view op = "gather_backward";
  check::rank(op, "ids", ids, 1);
  check::rank(op, "dtable", dtable, 2);
  check::dense(op, "ids", ids, DType::kI32, {ids.shape[0]});
  check::rows(op, "dout", dout, DType::kF32, {ids.shape[0], dtable.shape[1]});
  check::dense(op, "dtable", dtable, DType::kF32, {dtable.shape[0], dtable.shape[1]});
  if (!std::isfinite(scale)) check::refuse(op, "scale is not finite");
  check::distinct(op, "dtable", dtable, "dout", dout);
  check::distinct(op, "dtable", dtable, "ids", ids);
}

double GatherBackward::flops() const { return 2.0 * static_cast<double>(dout.elements()); }

double GatherBackward::bytes() const { return static_cast<double>(ids.bytes() + 3 * dout.bytes()); }

}  // namespace qiao
