// What the reference keeps: a weight's file bytes as they came, and pages as plain arrays.
#pragma once

#include <vector>

#include "backend/reference/dequantize.h"
#include "backend/weight.h"

namespace qiao::reference {

class ReferenceWeight final : public Weight {
 public:
  explicit ReferenceWeight(const WeightSource& source);
  size_t bytes() const override;
  // The file's bytes of one segment of one expert.
  const std::vector<std::byte>& part(int64_t expert, size_t segment) const;
  // W[expert, row, :], columns() terms.
  void row_terms(int64_t expert, int64_t row, Term* out) const;

 private:
  std::vector<std::vector<std::byte>> parts_;
};

class ReferencePages final : public KvPages {
 public:
  explicit ReferencePages(const KvPagesSpec& spec);
  size_t bytes() const override;
  // [G, D] of a slot; values already rounded to the pages' dtype.
  float* keys(int64_t slot);
  float* values(int64_t slot);
  const float* keys(int64_t slot) const;
  const float* values(int64_t slot) const;

 private:
  std::vector<float> keys_, values_;
};

}  // namespace qiao::reference
