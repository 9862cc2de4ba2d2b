#include "backend/ops/sample.h"

#include "backend/ops/check.h"

namespace qiao {
namespace {

// A sparse list: all three present, or none.
void list(std::string_view op, std::string_view name, const Tensor& ids, const Tensor& values,
          DType values_dtype, const Tensor& offsets, int64_t rows) {
  const int present = ids.present() + values.present() + offsets.present();
  if (present == 0) return;
  if (present != 3) check::refuse(op, fmt::format("{} list is not whole: all of its tensors or none", name));
  check::rank(op, name, ids, 1);
  check::dense(op, name, ids, DType::kI32, {ids.shape[0]});
  check::dense(op, name, values, values_dtype, {ids.shape[0]});
  check::dense(op, name, offsets, DType::kI32, {rows + 1});
}

}  // namespace

void Sample::check() const {
  constexpr std::string_view op = "sample";
  check::rank(op, "logits", logits, 2);
  const int64_t count = logits.shape[0];
  const int64_t vocabulary = logits.shape[1];
  if (vocabulary < 1)
    check::refuse(op, fmt::format("logits is {}, expected one token or more", to_string(logits)));
  check::rows(op, "logits", logits, DType::kF32, {count, vocabulary});
  check::dense(op, "rows", rows, DType::kU8, {count, static_cast<int64_t>(sizeof(SampleRow))});
  if (reinterpret_cast<uintptr_t>(rows.data) % alignof(SampleRow) != 0) {
    check::refuse(op, "rows are not aligned to SampleRow");
  }
  if (mask.present()) check::rows(op, "mask", mask, DType::kI32, {count, (vocabulary + 31) / 32});
  list(op, "history", history_ids, history_counts, DType::kI32, history_offsets, count);
  list(op, "bias", bias_ids, bias_values, DType::kF32, bias_offsets, count);
  check::dense(op, "ids", ids, DType::kI32, {count});
  if (log_probabilities.present()) {
    check::dense(op, "log_probabilities", log_probabilities, DType::kF32, {count});
  }
  if (top_ids.present() != top_log_probabilities.present()) {
    check::refuse(op, "top_ids and top_log_probabilities: one is absent, expected both or none");
  }
  if (top_ids.present()) {
    check::rank(op, "top_ids", top_ids, 2);
    const int64_t top = top_ids.shape[1];
    if (top < 1 || top > vocabulary) {
      check::refuse(op, fmt::format("top_ids is {}, expected from 1 to {} of logits {}", to_string(top_ids),
                                    vocabulary, to_string(logits)));
    }
    check::rows(op, "top_ids", top_ids, DType::kI32, {count, top});
    check::rows(op, "top_log_probabilities", top_log_probabilities, DType::kF32, {count, top});
  }
  check::workspace(op, workspace);
  const Tensor* outputs[] = {&ids, &log_probabilities, &top_ids, &top_log_probabilities, &workspace};
  const Tensor* inputs[] = {&logits,          &rows,     &mask,        &history_ids, &history_counts,
                            &history_offsets, &bias_ids, &bias_values, &bias_offsets};
  for (const Tensor* output : outputs) {
    for (const Tensor* input : inputs) check::distinct(op, "an output", *output, "an input", *input);
    for (const Tensor* other : outputs) {
      if (other != output) check::distinct(op, "an output", *output, "another", *other);
    }
  }
}

double Sample::flops() const { return 4.0 * static_cast<double>(logits.elements()); }

double Sample::bytes() const { return static_cast<double>(logits.bytes() + mask.bytes() + ids.bytes()); }

}  // namespace qiao
