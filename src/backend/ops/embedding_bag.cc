#include "backend/ops/embedding_bag.h"

#include <algorithm>

#include "backend/ops/check.h"

namespace qiao {
namespace {

// What both directions share; `bags` is out or dout.
template <typename Op>
void check_bags(std::string_view name, const Op& op, std::string_view bags_name, const Tensor& bags) {
  check::rank(name, "table", op.table, 2);
  const DType dtype = op.table.dtype;
  if (dtype != DType::kF32 && dtype != DType::kF16 && dtype != DType::kBF16) {
    check::refuse(name, fmt::format("table is {}, expected F32, F16 or BF16", to_string(op.table)));
  }
  check::rows(name, "table", op.table, dtype, {op.table.shape[0], op.table.shape[1]});
  check::rank(name, "ids", op.ids, 1);
  check::rank(name, "offsets", op.offsets, 1);
  check::dense(name, "ids", op.ids, DType::kI32, {op.ids.shape[0]});
  check::dense(name, "offsets", op.offsets, DType::kI32, {op.offsets.shape[0]});
  if (op.offsets.shape[0] < 1) check::refuse(name, "offsets has no element, expected one more than bags");
  if (op.weights.present()) {
    check::dense(name, "weights", op.weights, DType::kF32, {op.ids.shape[0]});
    if (op.mean) check::refuse(name, "weights go with a sum, not with a mean");
  }
  check::rows(name, bags_name, bags, DType::kF32, {op.offsets.shape[0] - 1, op.table.shape[1]});
}

double multiplications(const Tensor& ids, const Tensor& table) {
  return 2.0 * static_cast<double>(ids.elements()) * static_cast<double>(table.shape[1]);
}
double row_bytes_of(const Tensor& ids, const Tensor& rows) {
  return static_cast<double>(ids.elements()) * static_cast<double>(rows.shape[1]) *
         static_cast<double>(traits(rows.dtype).block_bytes);
}

}  // namespace

void EmbeddingBag::check() const {
  constexpr std::string_view op = "embedding_bag";
  check_bags(op, *this, "out", out);
  for (const auto& [name, input] :
       {std::pair{"table", &table}, {"ids", &ids}, {"offsets", &offsets}, {"weights", &weights}}) {
    check::distinct(op, "out", out, name, *input);
  }
}

double EmbeddingBag::flops() const { return multiplications(ids, table); }

double EmbeddingBag::bytes() const {
  return row_bytes_of(ids, table) +
         static_cast<double>(ids.bytes() + offsets.bytes() + weights.bytes() + out.bytes());
}

void EmbeddingBagBackward::check() const {
  constexpr std::string_view op = "embedding_bag_backward";
  check_bags(op, *this, "dout", dout);
  const int64_t rows = table.shape[0], columns = table.shape[1], places = ids.shape[0];
  if (!dtable.present() && !drows.present() && !dweights.present()) {
    check::refuse(op, "dtable, drows and dweights are absent, expected one of them or more");
  }
  if (drows.present() != row_ids.present()) check::refuse(op, "drows and row_ids go together");
  if (dtable.present()) check::dense(op, "dtable", dtable, DType::kF32, {rows, columns});
  if (drows.present()) check::dense(op, "drows", drows, DType::kF32, {places, columns});
  if (row_ids.present()) check::dense(op, "row_ids", row_ids, DType::kI32, {places});
  if (dweights.present()) check::dense(op, "dweights", dweights, DType::kF32, {places});
  check::workspace(op, workspace);
  const std::pair<const char*, const Tensor*> results[] = {{"dtable", &dtable},
                                                           {"drows", &drows},
                                                           {"row_ids", &row_ids},
                                                           {"dweights", &dweights},
                                                           {"workspace", &workspace}};
  const std::pair<const char*, const Tensor*> inputs[] = {
      {"table", &table}, {"ids", &ids}, {"offsets", &offsets}, {"weights", &weights}, {"dout", &dout}};
  for (const auto& result : results) {
    for (const auto& input : inputs) {
      check::distinct(op, result.first, *result.second, input.first, *input.second);
    }
    for (const auto& other : results) {
      if (&other == &result) break;
      check::distinct(op, result.first, *result.second, other.first, *other.second);
    }
  }
}

double EmbeddingBagBackward::flops() const {
  const int products = (dtable.present() ? 1 : 0) + (drows.present() ? 1 : 0) + (dweights.present() ? 1 : 0);
  return products * multiplications(ids, table);
}

// dtable is read and written.
double EmbeddingBagBackward::bytes() const {
  const int rows = (dtable.present() ? 3 : 0) + (drows.present() ? 2 : 0) + (dweights.present() ? 1 : 0);
  const double read = dweights.present() ? row_bytes_of(ids, table) : 0;
  return rows * row_bytes_of(ids, dout) + read +
         static_cast<double>(ids.bytes() + offsets.bytes() + weights.bytes() + row_ids.bytes() +
                             dweights.bytes());
}

}  // namespace qiao
