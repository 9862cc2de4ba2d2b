// What the reference keeps: a weight's file bytes as they came, and pages as plain arrays.
#pragma once

#include <vector>

#include "backend/weight.h"
#include "tensor/dequantize.h"

namespace qiao::reference {

using Term = QuantTerm;

class ReferenceWeight final : public Weight {
 public:
  explicit ReferenceWeight(const WeightSource& source);
  size_t bytes() const override;
  // The file's bytes of one segment of one expert.
  const std::vector<std::byte>& part(int64_t expert, size_t segment) const;
  // values [N, K], rounded to each segment's dtype: F32, F16, BF16 or F8_128.
  void write(int64_t expert, const float* values);
  // W[expert, row, :], columns() terms.
  void row_terms(int64_t expert, int64_t row, Term* out) const;

 private:
  std::vector<std::vector<std::byte>> parts_;
};

class ReferencePages final : public KvPages {
 public:
  explicit ReferencePages(const KvPagesSpec& spec);
  size_t bytes() const override;
  // A head's key and value at a slot: rows of D in the pages' dtype, as page_bytes() has them.
  std::byte* key(int64_t slot, int64_t head) { return rows_.data() + offset(slot, head); }
  std::byte* value(int64_t slot, int64_t head) { return key(slot, head) + row_bytes_; }
  const std::byte* key(int64_t slot, int64_t head) const { return rows_.data() + offset(slot, head); }
  const std::byte* value(int64_t slot, int64_t head) const { return key(slot, head) + row_bytes_; }

 private:
  size_t offset(int64_t slot, int64_t head) const {
    return static_cast<size_t>(2 * (slot * spec().kv_heads + head) * row_bytes_);
  }
  int64_t row_bytes_;
  std::vector<std::byte> rows_;
};

}  // namespace qiao::reference
